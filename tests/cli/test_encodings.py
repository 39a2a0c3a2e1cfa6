"""What is printed where the terminal, the pipe or the locale knows few letters: JSON stays the same JSON."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from mmalign.cli import dump, lines, main, show

from tests.benchmarks.test_benchmarks import put

SAID = "é \u4e2d 😀 \u200b"
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


class Stream(io.TextIOWrapper):
    """As stdout is where the encoding is another."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


ENCODINGS = pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])


def streams(encoding: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Stream, Stream]:
    """stdout and stderr from now on, as the command begins with them."""
    out, err = Stream(encoding), Stream(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    lines.escape()
    return out, err


@ENCODINGS
def test_json_is_the_same_in_every_encoding(encoding, monkeypatch):
    out, _ = streams(encoding, monkeypatch)
    dump({SAID: [SAID]})
    assert json.loads(out.text()) == {SAID: [SAID]}


@ENCODINGS
def test_tables_lines_and_errors(encoding, monkeypatch):
    both = streams(encoding, monkeypatch)
    table = show.table(SAID)
    table.add_row(SAID)
    show.out.print(table)
    show.tell([SAID])
    lines.complain(SAID)
    for stream in both:
        assert ("é" in stream.text()) == (encoding != "ascii")
        assert ("\\ud83d\\ude00" in stream.text()) == (encoding != "utf-8")


VERBS = [
    ["list", "--json"],
    ["list", "benchmarks", "--json"],
    ["show", "benchmarks", "pope", "--json"],
    ["plan", "quickstart", "--json"],
    ["check", "quickstart"],
    ["score", "--help"],
]


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_verbs(words, here, monkeypatch):
    out, err = streams("ascii", monkeypatch)
    assert not main(words), err.text()
    assert out.text()
    if "--json" in words:
        assert json.loads(out.text())


@pytest.mark.parametrize("settings", [{"PYTHONIOENCODING": "ascii"}, C_LOCALE], ids=["ascii", "C"])
def test_the_command(settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"question": "?", "imageId": "n1", "answer": SAID, "isBalanced": True}
    put(tmp_path, "testdev_balanced_questions.json", {"1": row})
    put(tmp_path, "a.json", {"1": SAID})
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    line = [sys.executable, "-c", "from mmalign.cli import entry; entry()", "score", "--bench", "gqa", "--data", "."]
    for words in (["--json"], []):
        done = subprocess.run([*line, "--answers", "a.json", *words], cwd=tmp_path, capture_output=True, check=False)
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
        if words:
            assert json.loads(done.stdout.decode("ascii"))["taken"] == {"1": SAID}
    done = subprocess.run([*line, "--answers", "é.json"], cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, b"Traceback" in done.stderr) == (2, False), done.stderr
    assert b"error: cannot read " in done.stderr


def test_a_stage_writes_its_log_in_utf_8(monkeypatch):
    """Whatever the terminal takes; the log is read as UTF-8."""
    from mmalign.pipeline import run

    class StartedError(Exception): ...

    def started(*_, env, **__):
        raise StartedError(env["PYTHONIOENCODING"])

    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    monkeypatch.setattr(run.subprocess, "Popen", started)
    node = type("Node", (), {"folder": Path("/tmp"), "stage": type("Stage", (), {"alone": True})})
    launch = type("Launch", (), {"here": 0, "command": lambda *_: [sys.executable]})()
    with pytest.raises(StartedError, match="utf-8"):
        run._start(node, launch, 0, "")
