"""`mmalign watch --page`: what the page is told, who may ask, and that nothing of an address reaches a file."""

import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from mmalign.cli import page

from mmalign.pipeline import ended, lock, progress, records, task
from mmalign.plan import graph
from mmalign.plan import read as compose

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def nodes(tiny):
    return graph.plan(compose.load(tiny), "runs")


@pytest.fixture
def served(here):
    """The address of a page of the folder `runs`, without its path."""
    with ThreadingHTTPServer((page.LOOPBACK, 0), partial(page.Handler, Path("runs"))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def get(url, **headers):
    """(status, headers, text) of an answer, whatever it is."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as answer:
        return answer.code, answer.headers, answer.read().decode()


def asked(served):
    code, headers, text = get(f"{served}/status.json")
    assert (code, headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    return json.loads(text)


def log(folder, steps):
    rows = [
        {"step": n, "loss": 1 / n, "lm": 1 / n, "tokens": 50.0, "steps_per_second": 2.0, "time": 1e9 + n} for n in steps
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


# What it is told


def test_without_a_run_it_says_so(here, served):
    assert (asked(served)["runs"], asked(served)["note"]) == ([], "no folder runs")
    Path("runs").mkdir()
    assert (asked(served)["runs"], asked(served)["note"]) == ([], "nothing ran in runs")


def test_it_is_told_what_status_says_and_the_curves_of_what_runs(nodes, mmalign, served):
    align = nodes[1].folder
    task.save(nodes[0])
    task.finish(task.load(nodes[0].folder), {"metrics": {}}, 0.0, 1)
    with records.recorded(nodes, 1) as begin, lock.locked(align):
        begin()
        log(align, range(1, 5))
        (align / "events.jsonl").write_text('{"done": 4, "total": 6, "unit": "steps"}\n')
        told, said = asked(served), json.loads(mmalign("status", "--json").out)
    assert told["note"] == ""
    for run, same in zip(told["runs"], said["runs"], strict=True):
        assert run.pop("heading").startswith("tiny   running: process ")
        for row, like in zip(run["stages"], same["stages"], strict=True):
            extra = {key: row.pop(key) for key in row.keys() - like.keys()}
            assert set(extra) == {"title", "far", "remark", "time", "failure", "curves"}
            if row["stage"] == "align":
                assert extra["far"] == "4/6 steps"
                assert extra["curves"][-1] == {
                    "step": 4, "loss": 0.25, "lm": 0.25, "steps_per_second": 2.0, "tokens/s": 100.0,
                }  # fmt: skip
                assert len(extra["curves"]) == 4
            else:
                assert extra["curves"] == []
            row.pop("silent"), like.pop("silent")
        assert run == same


def test_a_failure_is_told_as_status_tells_it(nodes, served):
    folder = nodes[1].folder
    task.save(nodes[1])
    ended.write(folder, "lm is nan", "samples <b>", "less")
    (row,) = asked(served)["runs"][0]["stages"]
    assert row["state"] == "failed"
    assert row["failure"].splitlines()[1:] == ["  at   samples <b>", "  try  less", f"  log  {folder / 'log.txt'}"]


def test_curves_are_few_points_from_all_over_with_the_newest(tmp_path):
    log(tmp_path, range(1, 5001))
    steps = [row["step"] for row in progress.curves(tmp_path)]
    assert len(steps) <= progress.POINTS
    assert (steps[0] < 60, steps[-1]) == (True, 5000)
    assert steps == sorted(steps)
    log(tmp_path, [1])
    assert [row["step"] for row in progress.curves(tmp_path)] == [1]
    assert progress.curves(tmp_path / "nothing") == []


def test_a_number_that_json_has_not_is_null(nodes, served):
    with records.recorded(nodes, 1) as begin, lock.locked(nodes[0].folder):
        begin()
        (nodes[0].folder / "metrics.jsonl").write_text('{"step": 1, "lm": NaN}\n')
        assert asked(served)["runs"][0]["stages"][0]["curves"] == [{"step": 1, "lm": None}]


# Who may ask, and for what


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost@evil.example", "", "[", "0.0.0.0"]
)
def test_a_name_of_somewhere_else_is_refused(here, served, host):
    """DNS rebinding: a page from elsewhere whose name was made to mean this machine."""
    for path in ("/", "/status.json"):
        code, _, text = get(served + path, Host=host)
        assert (code, text) == (403, "ask for 127.0.0.1\n")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "LOCALHOST"])
def test_a_port_that_ssh_forwards_is_none_of_its_business(here, served, host):
    assert get(served + "/", Host=host)[0] == 200


def test_without_a_host_it_is_refused(here, served):
    with socket.create_connection(("127.0.0.1", int(served.rpartition(":")[2]))) as line:
        line.sendall(b"GET /status.json HTTP/1.0\r\n\r\n")
        assert line.recv(100).startswith(b"HTTP/1.0 403 ")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
def test_only_get(here, served, method):
    line = http.client.HTTPConnection(served.removeprefix("http://"), timeout=20)
    line.request(method, "/status.json")
    assert line.getresponse().status == 501
    line.close()


@pytest.mark.parametrize(
    "path", ["/secret.txt", "/../secret.txt", "/%2e%2e/secret.txt", "/status.json?a", "/runs/", "/./"]
)
def test_no_address_leads_to_a_file(here, served, path):
    (here / "secret.txt").write_text("secret")
    code, _, text = get(served + path)
    assert (code, text) == (404, "there are / and /status.json\n")


def test_the_page_is_whole_in_itself_and_may_load_nothing_from_elsewhere(here, served):
    code, headers, text = get(served + "/")
    assert (code, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    policy = headers["Content-Security-Policy"]
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", policy)[1]
    assert policy.startswith("default-src 'none'; ")
    assert "connect-src 'self'" in policy
    assert f'<script nonce="{nonce}">' in text
    assert nonce not in get(served + "/")[2]
    assert "://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|<img|<link|\sstyle=|\son\w+=", text)
    for name in ("Access-Control-Allow-Origin", "Set-Cookie"):
        assert headers[name] is None


# The verb


def test_it_prints_its_address_and_ends_with_ctrl_c(here):
    line = [sys.executable, "-c", "from mmalign.cli import entry; entry()", "watch", "--page"]
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **heard) as process:
        url, _, rest = process.stdout.readline().partition(" ")
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
        assert rest.strip() == "Ctrl-C ends it"
        assert "no folder runs" in get(f"{url}status.json")[2]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")


def test_a_port_that_is_taken(here, mmalign, served):
    port = served.rpartition(":")[2]
    said = mmalign("watch", "--page", "--port", port)
    assert said.code == 2
    what = f"error: cannot open port {port} on 127.0.0.1: Address already in use"
    assert said.err.splitlines() == [what, "  at   --port", "  try  another one, or leave --port out"]


def test_a_port_without_a_page(here, mmalign):
    said = mmalign("watch", "--port", "8000")
    assert said.code == 2
    assert said.err.splitlines() == [
        "error: --port 8000 is the page's", "  at   --port", "  try  mmalign watch --page --port NUMBER",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no browser")
def test_a_browser_shows_texts_as_texts(nodes, served):
    """Whatever a stage is called and says: no tag of it is one of the page."""
    evil = "<img src=x onerror=document.title='evil'>"
    with records.recorded(nodes, 1) as begin, lock.locked(nodes[1].folder):
        begin()
        log(nodes[1].folder, range(1, 50))
        task.save(nodes[0])
        ended.write(nodes[0].folder, evil, evil, evil)
        line = [CHROMIUM, "--headless=new", "--no-sandbox", "--virtual-time-budget=3000", "--dump-dom", f"{served}/"]
        dom = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "&lt;img src=x onerror=" in dom
    assert "<img" not in dom
    assert "<title>runs</title>" in dom
    assert dom.count("<polyline") == 4  # loss, lm, steps and tokens a second
