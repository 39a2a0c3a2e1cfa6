"""Limits: what holds is the setting's, or the default; messages say both the amount and the setting."""

import re
from pathlib import Path

import pytest

from mmalign.errors import RecipeError, RunError
from mmalign.io import limits, whole
from mmalign.io.limits import IMAGE_BYTES, IMAGE_PIXELS, Limit

ALL = {name: value for name, value in vars(limits).items() if isinstance(value, Limit)}


@pytest.mark.parametrize(
    ("text", "value"), [("", IMAGE_BYTES.default), ("100", 100), ("5k", 5120), ("2M", 2 << 20), (" 3G ", 3 << 30)]
)
def test_settings(monkeypatch, text, value):
    monkeypatch.setenv("MMALIGN_IMAGE_BYTES", text)
    assert IMAGE_BYTES.value == value


@pytest.mark.parametrize("text", ["many", "-1", "1.5G", "1GB", "1e9", "9" * 30, "٣"])
def test_settings_that_are_no_number(monkeypatch, text):
    monkeypatch.setenv("MMALIGN_IMAGE_BYTES", text)
    with pytest.raises(RunError, match=r"MMALIGN_IMAGE_BYTES is no number") as caught:
        IMAGE_BYTES.value  # noqa: B018
    assert caught.value.fix == "MMALIGN_IMAGE_BYTES=256M"


def test_what_a_message_says(monkeypatch):
    assert [IMAGE_BYTES.short(n) for n in (7, 1536, 3 << 30, 5 << 40)] == ["7 bytes", "1.5 KiB", "3 GiB", "5 TiB"]
    assert IMAGE_PIXELS.short(1_000_000) == "1,000,000 pixels"
    assert IMAGE_BYTES.fix == "MMALIGN_IMAGE_BYTES=512M, if it is right that it is so large"
    assert IMAGE_PIXELS.fix.startswith("MMALIGN_IMAGE_PIXELS=357913940, ")
    for limit in ALL.values():  # what is proposed can be set, and is enough for twice as much
        setting = re.match(r"(\w+)=(\w+), ", limit.fix)
        assert setting
        twice = 2 * limit.value
        monkeypatch.setenv(setting[1], setting[2])
        assert limit.value == twice


def test_every_limit_has_a_setting_of_its_own():
    names = [limit.name for limit in ALL.values()]
    assert len(set(names)) == len(names)
    assert all(name.startswith("MMALIGN_") for name in names)


def test_files_read_whole(tmp_path, monkeypatch):
    place = tmp_path / "x"
    place.write_bytes(b"abc")
    assert whole.read(str(place), error=RecipeError) == b"abc"
    monkeypatch.setenv("MMALIGN_FILE_BYTES", "3")
    assert whole.read(str(place)) == b"abc"
    place.write_bytes(b"abcd")
    with pytest.raises(RecipeError, match="x has 4 bytes, and no more than 3 bytes are read") as caught:
        whole.read(str(place), error=RecipeError)
    assert caught.value.at == str(place)
    assert caught.value.fix.startswith("MMALIGN_FILE_BYTES=6")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000])
def test_json_without_a_floor(text, tmp_path):
    from mmalign.benchmarks import reading
    from mmalign.data import quarantine
    from mmalign.errors import DataError
    from mmalign.io import files

    (tmp_path / "x.json").write_text(text)
    place = str(tmp_path / "x.json")
    with pytest.raises(RunError, match="nested more than 100 deep"):
        files.read_json(Path(place))
    for read in (reading.json_file, reading.json_lines):
        with pytest.raises(DataError, match="nested (too|more than 100) deep"):
            read(place)
    with pytest.raises(DataError, match="not a line of a quarantine"):
        quarantine.entries(place)
