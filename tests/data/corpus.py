"""Some two hundred damaged rows and images, each with the reasons that may be given for it."""

import base64
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.data.samples import encode, jpeg, picture, png, png_header, row


@dataclass
class Case:
    name: str
    line: bytes  # of the JSONL file
    reasons: set[str]


def cases(folder: Path) -> Iterator[Case]:
    """Every damaged row; the images it refers to are written below the folder."""
    for number, (name, data, reasons) in enumerate(damaged_images()):
        file = f"{number}.jpg"
        (folder / file).write_bytes(data)
        yield Case(name, json.dumps(row(f"i{number}", file)).encode(), set(reasons.split()))
    for number, (reference, reasons) in enumerate(references(folder)):
        line = json.dumps(row(f"p{number}", reference)).encode()
        yield Case(f"reference {reference!r:.40}", line, set(reasons.split()))
    for line, reasons in lines():
        yield Case(f"line {line[:40]!r}", line, set(reasons.split()))
    for number, (content, reasons) in enumerate(conversations()):
        line = json.dumps({"id": f"t{number}", **content}).encode()
        yield Case(f"conversation {line[:60]!r}", line, set(reasons.split()))


def damaged_images() -> Iterator[tuple[str, bytes, str]]:
    large = picture((96, 64))
    for options in ({}, {"progressive": True}, {"quality": 30, "comment": jpeg(1)}):
        data = encode(large, "JPEG", **options)
        for end in range(2, len(data) - 1, len(data) // 16):
            yield f"JPEG {options} cut at {end}", data[:end], "truncated"
        for end in range(len(data) // 2, len(data) - 20, len(data) // 12):
            yield f"JPEG {options} zero behind {end}", data[:end] + bytes(len(data) - end), "truncated"
    for format_ in ("PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000"):
        data = encode(large, format_)
        for share in (0.02, 0.3, 0.6, 0.9):
            yield f"{format_} cut at {share}", data[: int(share * len(data))], "truncated broken"
    for side in (13_400, 15_000, 30_000, 65_000, 1 << 20, 2**31 - 1):
        yield f"PNG of {side}", png_header(side, side), "oversized"
    yield "a line of 200 million pixels", png_header(200_000_000, 1), "oversized"
    bmp = struct.pack("<IHHIIiiHH", 99, 0, 0, 54, 40, 50_000, 50_000, 1, 24)
    yield "BMP of 50,000", b"BM" + bmp + bytes(60), "oversized"
    gif = struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0)
    yield "GIF of 65,535", b"GIF89a" + gif + b"," + bytes(30), "oversized broken truncated"
    yield "no bytes", b"", "empty"
    for page in (b"<!DOCTYPE html><html>", b"<html><body>404", b"\n\n <!doctype HTML>", b"<?xml version='1.0'?><svg/>",
                 b"\xef\xbb\xbf<head>", b"<!-- gone -->"):  # fmt: skip
        yield f"page {page[:12]!r}", page, "html"
    for data in (b"hello", b"%!PS-Adobe-3.0", b"%PDF-1.4", b"PK\3\4zip", b"\x1f\x8bgzip", b"\0" * 5000,
                 b'{"error": 404}',
                 b"RIFF\0\0\0\0WEBP", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\n", b"GIF89a"):  # fmt: skip
        yield f"no image {data[:12]!r}", data, "broken truncated"
    yield "PNG with a broken checksum in its header", png()[:29] + b"\0\0\0\0" + png()[33:], "broken"


def references(folder: Path) -> Iterator[tuple[object, str]]:
    (folder.parent / "secret.jpg").write_bytes(jpeg())
    for name in ("../secret.jpg", "a/../../secret.jpg", str(folder.parent / "secret.jpg"), "/etc/hostname", "..", ".",
                 "../../../../../../etc/passwd", "file:///etc/passwd", f"file://{folder.parent}/secret.jpg",
                 f"local://{folder.parent}/secret.jpg", "simplecache::file:///etc/passwd",
                 "memory://none.jpg", "github://a:b@main/x.jpg", "HTTP://::1/x::y.jpg"):  # fmt: skip
        yield name, "outside"
    for name in ("http://localhost/x.jpg", "https://169.254.169.254/latest/x.jpg"):
        yield name, "host"
    (folder / "loop-a.jpg").symlink_to("loop-b.jpg")
    (folder / "loop-b.jpg").symlink_to("loop-a.jpg")
    (folder / "self").symlink_to("self")
    for name in ("loop-a.jpg", "loop-b.jpg", "self/x.jpg"):
        yield name, "circular"
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    for name in ("none.jpg", "0.jpg/x.jpg", "dangling.jpg", "folder.jpg", "pipe.jpg", "a\0b.jpg", "x" * 300,
                 "y/" * 3000, "NONE.JPG"):  # fmt: skip
        yield name, "missing"
    for text in ("!!!", "abc", "a" * 81, "é"):
        yield f"data:image/jpeg;base64,{text}", "base64"
    yield "data:image/jpeg,abc", "base64"
    cut = base64.b64encode(jpeg()[:-40]).decode()
    yield f"data:image/jpeg;base64,{cut}", "truncated"
    yield "data:image/jpeg;base64,", "empty"
    yield 7, "shape"
    yield True, "shape"
    yield {"path": None}, "shape"
    yield {"bytes": "text"}, "shape"
    yield ["none.jpg", "0.jpg"], "marks"


def lines() -> Iterator[tuple[bytes, str]]:
    turns = json.dumps(row()["conversations"]).encode()
    yield b'{"id": "a", "score": NaN, "conversations": ' + turns + b"}", "nan"
    yield b'{"id": "a", "box": [1, Infinity], "conversations": ' + turns + b"}", "nan"
    yield b'{"id": "a", "box": -Infinity}', "nan"
    for half in (b"\\ud800", b"\\udfff", b"\\ud83d x", b"\\ude00\\ud83d"):
        yield b'{"id": "a", "conversations": [{"from": "human", "value": "' + half + b'"}]}', "surrogate"
        yield b'{"id": "' + half + b'", "conversations": ' + turns + b"}", "surrogate"
    yield b'{"id": "a", "id": "b", "conversations": ' + turns + b"}", "twice"
    yield b'{"id": "a", "conversations": [{"from": "human", "value": "x", "value": "y"}]}', "twice"
    for depth in (5_000, 200_000):
        yield b'{"id": "a", "x": ' + b"[" * depth + b"]" * depth + b"}", "deep"
        yield b'{"a":' * depth + b"1" + b"}" * depth, "deep"
    for line in (b"{", b'{"id": "a"', b'{"id": "a",}', b"{'id': 'a'}", b'{"id": "a"} x', b'{"id": a}', b"nonsense",
                 b"}",
                 b'{"id": "\xff\xfe"}', b'{"id": "\xed\xa0\x80"}', b'{"id": "a\tb"}', b'{"n": ' + b"9" * 5000 + b"}",
                 b'{"id": "\\x41"}', b"\0\0\0\0\0\0\0\0\0\0"):  # fmt: skip
        yield line, "json"
    for line in (b"7", b"null", b"[1, 2]", b'"text"', b"{}"):
        yield line, "shape"


def conversations() -> Iterator[tuple[dict, str]]:
    def conversation(*turns):
        return {"conversations": [{"from": who, "value": text} for who, text in turns]}

    question, answer = ("human", "Hello."), ("gpt", "Hi.")
    yield {"tools": [{"name": "x"}], **conversation(question, answer)}, "keys"
    yield {"rejected": "x", **conversation(question, answer)}, "keys"
    yield {"loss_mask": [0, 1], **conversation(question, answer)}, "flags"
    yield {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "loss": "no"}]}, "flags"
    yield (
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "loss": 0}]},
        "unanswered",
    )
    yield {"system": "x", **conversation(("system", "y"), question, answer)}, "roles"
    yield {"conversations": None}, "shape"
    yield {"conversations": "text"}, "shape"
    yield {"conversations": [1]}, "shape"
    yield {"conversations": {"from": "human"}}, "shape"
    yield {"messages": [{"role": "user", "content": {"text": "x"}}]}, "shape"
    yield {"video": "x.mp4", **conversation(question, answer)}, "shape"
    yield conversation(("human", None), answer), "shape"
    yield conversation(("human", 3), answer), "shape"
    yield conversation(), "unanswered"
    yield conversation(question), "unanswered"
    yield conversation(answer), "unanswered"
    yield conversation(question, ("gpt", "")), "blank"
    yield conversation(question, ("gpt", " \n\t")), "blank"
    yield conversation(("human", ""), answer), "blank"
    yield conversation(question, answer, ("human", " ")), "blank"
    yield conversation(("system", ""), question, answer), "blank"
    yield conversation(question, question, answer), "roles"
    yield conversation(question, answer, answer), "roles"
    yield conversation(answer, answer, question, answer), "roles"
    yield conversation(question, ("system", "x"), answer), "roles"
    yield conversation(("narrator", "x"), answer), "roles"
    yield conversation((None, "x"), answer), "roles"
    yield conversation((["human"], "x"), answer), "roles"
    yield conversation(("human", "<image>"), answer), "marks"
    yield conversation(question, ("gpt", "The tag is <image>.")), "marks"
    yield {"image": "good.jpg", **conversation(("human", "<image><image>"), answer)}, "marks"
    yield {"image": ["good.jpg", "good.jpg"], **conversation(("human", "<image>"), answer)}, "marks"
    yield {"image": ["good.jpg", 5], **conversation(question, answer)}, "shape"
