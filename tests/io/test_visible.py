"""What a terminal would obey is shown, not obeyed: in messages, tables, lines, logs and pages."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mmalign.cli import bars, lines, live
from mmalign.cli.listing import table
from mmalign.cli.screen import Screen
from rich.table import Table

from mmalign.errors import RunError
from mmalign.io import pages
from mmalign.io.visible import one_line, visible
from mmalign.pipeline import worker
from mmalign.pipeline.run import Launch

HOSTILE = {
    "C0": "\0\x07\x08\r\x1b[2J\x1b]0;title\x07",
    "DEL and C1": "\x7f\x80\x85\x9b31m\x9d\x9f",
    "bidi": "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
    "line ends": "\u2028\u2029\x0b\x0c\x1c\x1d\x1e",
    "halves": "\udfff\ud800",
    "unseen": "\u200b\u2060\ufeff\U000e0041",
}
OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\U000e0041]"
)


@pytest.fixture(params=HOSTILE.values(), ids=HOSTILE)
def hostile(request):
    return f"a{request.param}z"


def shown(text: str, hostile: str) -> None:
    assert not OBEYED.search(text), ascii(text)
    assert "".join(f"\\u{ord(char):04x}" for char in hostile[1:2]) in text
    assert "a" in text
    assert "z" in text


def test_ordinary_text_stays_as_it_is():
    for text in ("Grüße, 你好\tمرحبا\n", "👩‍👩‍👧 e\u0301 नि", "~ [bold]x[/bold] {} \\u001b"):
        assert visible(text) == text
    assert one_line("a\nb\tc") == "a\\nb\\tc"


def test_json_stays_the_same_json(hostile):
    written = json.dumps({hostile: hostile}, ensure_ascii=False)
    assert json.loads(visible(written)) == {hostile: hostile}
    shown(visible(written), hostile)


def test_messages(hostile):
    err = RunError(f"no {hostile}", at=hostile, fix=hostile)
    shown(str(err), hostile)
    assert len(str(err).splitlines()) == 3
    assert err.what == f"no {hostile}"
    assert str(RunError("x", at="a\n  try  rm -rf /")).count("\n") == 1


def test_lines_and_tables(hostile, capsys):
    lines.say(hostile)
    lines.complain(hostile)
    table([{"name": hostile, "what": f"{hostile}\nforged  row"}])
    out, err = capsys.readouterr()
    shown(out, hostile)
    shown(err, hostile)
    assert len(out.splitlines()) == 3
    screen = Screen(file=sys.stdout, width=200, highlight=False, markup=False)
    cells = Table(hostile)
    cells.add_row(hostile)
    screen.print(cells)
    screen.print(f"{hostile}: [bold]no markup[/bold]")
    out = capsys.readouterr().out
    shown(out, hostile)
    assert "[bold]no markup[/bold]" in out
    assert len(set(map(len, out.splitlines()[1:-1]))) == 1  # the lines of the table are as wide as each other


def test_progress(hostile, capsys):
    class Stage:
        name, arms, folder = hostile, [hostile], Path("runs/x")

    rest = live.Rest([Stage], Launch())
    for display in (live.Lines(rest), bars.Bars(rest)):
        display.begin(Stage)
        display.event(Stage, {"say": hostile})
        display.event(Stage, {"done": 1, "total": 2, "numbers": {hostile: 0.5}})
        display.end(Stage, 1.0)
    shown(capsys.readouterr().err, hostile)


def test_logs(hostile):
    record = logging.LogRecord("x", logging.ERROR, "x", 1, "%s", (hostile,), None)
    shown(worker._Lines("%(levelname)s %(message)s").format(record), hostile)


def test_pages(hostile):
    parts = {"whole": True, "data": "", "style": "", "script": "", "below": ""}
    text = pages.page("mmalign.explore", "explorer.html", title=f"{hostile}<b>", **parts)
    shown(text, hostile)
    assert "<b>" not in text
    assert text.count("&lt;b&gt;") == 3


def test_the_command_line_prints_through_one_door():
    """Where a print stands alone, what it prints is ours or has passed the door."""
    folder = Path(live.__file__).parent
    bare = {
        place.name: re.findall(r"(?<![\w.])print\(.*", place.read_text(encoding="utf-8"))
        for place in folder.glob("*.py")
    }
    assert {name: found for name, found in bare.items() if found} == {
        "lines.py": ["print(visible(text), file=file, end=end, flush=file is sys.stderr)"]
    }
    consoles = [place.name for place in folder.glob("*.py") if "import Console" in place.read_text(encoding="utf-8")]
    assert consoles == ["screen.py"]


def test_a_whole_command(tmp_path):
    line = [sys.executable, "-c", "from mmalign.cli import entry; entry()", "labels", "stats", "a\x1b[31m\u202eb"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert "\\u001b[31m\\u202e" in done.stderr
    assert not OBEYED.search(done.stderr)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (None, "no base64"),
        (7, "no base64"),
        ('x"><script>', "no base64"),
        ("aGVsbG8=", "no PNG file"),
        ("é", "no base64"),
    ],
)
def test_what_is_no_picture_of_a_page(value, what):
    with pytest.raises(ValueError, match=what):
        pages.png(value)


def test_grids_of_pages():
    assert pages.grid([2, 3], 6) == (2, 3)
    assert pages.grid(None, 5) == (1, 5)
    for value in ([2, 2], [0, 0], [-2, -3], [2.0, 3], ["2", "3"], [6], "23", [10**9, 10**9], [True, 6]):
        with pytest.raises(ValueError, match="`grid` is"):
            pages.grid(value, 6)
