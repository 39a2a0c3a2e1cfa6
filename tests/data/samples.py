"""Small images, rows and files, good and damaged."""

import io
import json
import struct
import zlib

import numpy as np
from PIL import Image


def picture(size=(24, 16), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encode(image, format_="JPEG", **options):
    out = io.BytesIO()
    image.save(out, format_, **options)
    return out.getvalue()


def jpeg(seed=0, size=(24, 16)):
    return encode(picture(size, seed), "JPEG")


def png(seed=0, size=(24, 16)):
    return encode(picture(size, seed), "PNG")


def png_header(width, height):
    """A whole little PNG that claims to be of any size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def row(id_="a", image=None, asked="<image>\nWhat is it?", answer="A cat."):
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    return {"id": id_, **({} if image is None else {"image": image}), "conversations": turns}


def jsonl(path, rows):
    """Rows as JSON lines; bytes and strings as they are."""
    lines = [line if isinstance(line, (bytes, str)) else json.dumps(line) for line in rows]
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return str(path)


def images(folder, count=3):
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    return folder


def is_picture(image, seed=0, format_="PNG", size=(24, 16)):
    """Whether an image is the picture of that seed, after a format that keeps pixels or one that does not."""
    expected = Image.open(io.BytesIO(encode(picture(size, seed), format_))).convert("RGB")
    return image.mode == "RGB" and image.tobytes() == expected.tobytes()
