"""Files feed training like any other data: the same pixels, the same trained tokens, bad rows counted and listed."""

import base64
import gzip
import io
import json
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import torch

from mmalign.data import MARK
from mmalign.data.conversations import Conversations
from mmalign.data.mixture import Mixture
from mmalign.errors import StageError
from mmalign.llms.chat import Chat
from mmalign.plan import building
from mmalign.plan.cards import Registry
from mmalign.toyworld.data import Captions
from mmalign.training.batches import BadSamples, Collate
from tests.data.samples import jsonl, row


@pytest.fixture(scope="module")
def parts():
    known = Registry()
    return Chat(known.card("llms", "toy-llama").args["checkpoint"]), building.build(known.card("vision", "toy-clip"))


@pytest.fixture
def written(tmp_path):
    """Toy captions as LLaVA's JSONL and PNGs, and two rows that cannot be used."""
    captions, rows = Captions(6), []
    for number, record in enumerate(captions):
        captions.image(record.images[0]).save(tmp_path / f"{number}.png")
        rows.append(row(record.id, f"{number}.png", record.turns[0].text, record.turns[1].text))
    return jsonl(tmp_path / "x.jsonl", [*rows, row("gone", "none.png"), "{"])


def batch(data, parts, numbers, bad=0):
    chat, vision = parts
    return Collate(data, chat, vision, vision.patches, 500, BadSamples(bad)).batch(numbers, seed=0)


def trained(batch):
    return [row_S[weight_S > 0].tolist() for row_S, weight_S in zip(batch.ids_RS, batch.weight_RS)]


def test_the_same_as_the_toy_world(written, parts):
    toy, files = batch(Captions(6), parts, range(6)), batch(Conversations(written), parts, range(6))
    assert torch.equal(toy.pixels_B3SS, files.pixels_B3SS)
    assert trained(toy) == trained(files)
    assert files.ids == [f"{id_}@{n}" for n, id_ in enumerate(toy.ids)]
    mixed = batch(Mixture([Captions(6), {"kind": "conversations", "path": written}]), parts, [3, 9])
    assert torch.equal(mixed.pixels_B3SS[0], mixed.pixels_B3SS[1])
    assert (files.ids_RS == parts[0].mark).sum() == 6 * parts[1].patches
    assert MARK in Conversations(written)[0].turns[0].text


def test_bad_rows_are_counted(written, parts):
    chat, vision = parts
    bad = BadSamples(2)
    collated = Collate(Conversations(written), chat, vision, vision.patches, 500, bad).batch(range(8), seed=0)
    assert len(collated.ids) == 6
    assert bad.reasons["gone@6"] == "missing: no image none.png"
    assert "json: row 7 is not valid JSON" in str(bad.reasons)
    with pytest.raises(StageError, match="2 unusable samples"):
        batch(Conversations(written), parts, range(8), bad=1)


def png(number):
    buffer = io.BytesIO()
    Captions(3).image(number).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = [[0], [1, 2], []]  # the images of three rows: one, several, none


def rows(reference):
    """Three rows in LLaVA's way, `reference(number)` for each image."""
    for number, numbers in enumerate(IMAGES):
        references = [reference(image) for image in numbers]
        image = references[0] if len(references) == 1 else references or None
        yield row(f"r{number}", image, "<image>\n" * len(numbers) + "is there a cross in the image?", "no")


def lines(path, reference):
    return jsonl(path, list(rows(reference)))


def folder(to):
    for number in range(3):
        (to / f"{number}.png").write_bytes(png(number))
    return {"path": lines(to / "x.jsonl", "{}.png".format)}


def as_json(to):
    folder(to)
    (to / "x.json").write_text(json.dumps(list(rows("{}.png".format))))
    return {"path": str(to / "x.json")}


def packed(to):
    (to / "x.jsonl.gz").write_bytes(gzip.compress(Path(folder(to)["path"]).read_bytes()))
    return {"path": str(to / "x.jsonl.gz")}


def zipped(to):
    with zipfile.ZipFile(to / "i.zip", "w") as archive:
        for number in range(3):
            archive.writestr(f"{number}.png", png(number))
    return {"path": lines(to / "x.jsonl", "{}.png".format), "images": str(to / "i.zip")}


def put(archive, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def tarred(to):
    with tarfile.open(to / "i.tar", "w") as archive:
        for number in range(3):
            put(archive, f"i/{number}.png", png(number))
    return {"path": lines(to / "x.jsonl", "i/{}.png".format), "images": str(to / "i.tar")}


def shards(to):
    with tarfile.open(to / "00.tar", "w") as archive:
        for number, row_ in enumerate(rows(str)):
            put(archive, f"{number}.json", json.dumps(row_).encode())
            for index, image in enumerate(IMAGES[number]):
                put(archive, f"{number}.{index}.png", png(image))
    return {"path": str(to / "{00..00}.tar")}


def remote(to):
    for name, data in [("x.jsonl", Path(folder(to)["path"]).read_bytes()), *((f"{n}.png", png(n)) for n in range(3))]:
        with fsspec.open(f"memory://{to.name}/{name}", "wb") as target:
            target.write(data)
    return {"path": f"memory://{to.name}/x.jsonl"}


def by_url(to):
    remote(to)
    rows = lines(to / "x.jsonl", f"memory://{to.name}/{{}}.png".format)
    return {"path": rows, "images": f"memory://{to.name}"}


def by_bytes(to):
    return {"path": lines(to / "x.jsonl", lambda n: "data:image/png;base64," + base64.b64encode(png(n)).decode())}


def table():
    pa = pytest.importorskip("pyarrow")
    rows_ = [{"images": [], **row_} for row_ in rows(lambda number: {"bytes": png(number), "path": f"{number}.png"})]
    for row_ in rows_:
        image = row_.pop("image", [])
        row_["images"] = image if isinstance(image, list) else [image]
    return pa.Table.from_pylist(rows_)


def parquet(to):
    table_ = table()
    __import__("pyarrow.parquet").parquet.write_table(table_, to / "x.parquet")
    return {"path": str(to / "x.parquet")}


def arrow(to):
    table_ = table()
    with __import__("pyarrow").ipc.new_file(str(to / "x.arrow"), table_.schema) as writer:
        writer.write_table(table_)
    return {"path": str(to / "x.arrow")}


def hub(to):
    pytest.importorskip("datasets")
    parquet(to)
    return {"name": str(to)}


def saved(to):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset(table()).save_to_disk(str(to / "saved"))
    return {"path": str(to / "saved")}


def mixed(to):
    return {"data": [{"card": "conversations", "args": zipped(to)}, {"card": "toy-chat", "args": {"size": 3}}],
            "counts": [3, 0]}  # fmt: skip


WAYS = [
    *(("conversations", one) for one in (folder, as_json, packed, zipped, tarred, remote, by_url, by_bytes)),
    ("tars", shards), ("table", parquet), ("table", arrow), ("table", saved), ("hub", hub), ("mixture", mixed),
]  # fmt: skip


@pytest.mark.parametrize(("name", "write"), WAYS, ids=[write.__name__ for _, write in WAYS])
def test_every_way_to_store_rows_feeds_training_the_same(parts, tmp_path, name, write):
    known = Registry()
    card = known.card("data", name)
    collated = batch(building.build(known.filled(replace(card, args=card.args | write(tmp_path)))), parts, range(3))
    chat, vision = parts
    assert torch.equal(collated.pixels_B3SS, torch.stack([vision.pixels(Captions(3).image(n)) for n in range(3)]))
    assert (collated.ids_RS == chat.mark).sum(1).tolist() == [n * vision.patches for n in (1, 2, 0)]
    answer = chat.tokenizer("no", add_special_tokens=False).input_ids
    assert all(ids[: len(answer)] == answer for ids in trained(collated))
    assert [id_.rpartition("/")[2] for id_ in collated.ids] == ["r0@0", "r1@1", "r2@2"]
