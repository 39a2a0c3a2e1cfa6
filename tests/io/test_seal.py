"""JSON that vouches for itself: every turned bit and every cut is noticed; what 0.1.0 wrote is taken as it is."""

import json

import pytest

from mmalign.errors import RunError
from mmalign.io import seal

ABOUT = {"step": 5, "name": "grün", "lr": 1e-05, "none": {}, "files": {"a.safetensors": "0" * 64}}


@pytest.fixture
def place(tmp_path):
    seal.write(tmp_path / "step.json", ABOUT)
    return tmp_path / "step.json"


def test_what_is_written_is_read(place):
    assert seal.read(place) == ABOUT
    assert json.loads(place.read_text()).keys() == ABOUT.keys() | {"seal"}


def test_every_flipped_bit_and_every_cut_is_noticed(place):
    whole = place.read_bytes()
    for at in range(len(whole)):
        damaged = [whole[:at], *(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :] for bit in range(8))]
        for data in damaged:
            place.write_bytes(data)
            with pytest.raises(RunError) as caught:
                seal.read(place)
            assert caught.value.at == str(place)


def test_the_message(place):
    place.write_text(place.read_text().replace("5", "6", 1))
    with pytest.raises(RunError) as caught:
        seal.read(place, fix="try this")
    assert caught.value.what == "step.json is damaged: it is not as it was written (SHA-256)"
    assert caught.value.fix == "try this"


@pytest.mark.parametrize("text", ['{"step": 5}', "[1]", "3"])
def test_without_a_seal_and_without_hashes_it_is_taken_as_it_is(place, text):
    place.write_text(text)
    assert seal.read(place) == json.loads(text)


def test_hashes_without_a_seal_are_not(place):
    place.write_text('{"files": {}}')
    with pytest.raises(RunError, match=r"step\.json is damaged"):
        seal.read(place)
