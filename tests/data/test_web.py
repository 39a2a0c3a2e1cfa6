"""Pictures named by URL: nothing is asked of a host that nobody allowed, wherever another host sends us."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mmalign.data import web
from mmalign.data.conversations import Conversations
from mmalign.data.pictures import ImageReader
from mmalign.data.reasons import Unusable
from tests.data.samples import is_picture, jpeg, jsonl, row


class Site(BaseHTTPRequestHandler):
    """/x.jpg is a picture, /to?URL sends on to it, /endless does not end."""

    def do_GET(self):
        self.server.asked.append(f"{self.headers['Host'].partition(':')[0]}{self.path}")
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
            return
        self.send_response({"/x.jpg": 200, "/endless": 200, "/broken": 500}.get(self.path, 404))
        self.end_headers()
        if self.path == "/x.jpg":
            self.wfile.write(jpeg(3))
        while self.path == "/endless":
            try:
                self.wfile.write(bytes(1 << 16))
            except OSError:
                return

    def log_message(self, *words):
        pass


@pytest.fixture
def site(monkeypatch):
    """(a URL of the site, what it was asked for)."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv(web.HOSTS, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", server.asked
    server.shutdown()
    server.server_close()


def refused(url, *images):
    with pytest.raises(Unusable) as caught:
        ImageReader(list(images)).read(url)
    return caught.value


def test_nothing_is_asked_of_a_host_that_nobody_allowed(site, monkeypatch):
    url, asked = site
    for hosts in ("", "example.org", "127.0.0.10", "27.0.0.1", "*.org, 10.*"):
        monkeypatch.setenv(web.HOSTS, hosts)
        err = refused(f"{url}/x.jpg", "https://example.com/images")
        assert err.reason == "host"
        assert err.fix == "images: [https://127.0.0.1], or MMALIGN_IMAGE_HOSTS=127.0.0.1"
        assert refused({"bytes": None, "path": f"{url}/x.jpg"}).reason == "host"
    assert refused(f"http://user@example.org@127.0.0.1:{url[-5:]}/x.jpg").reason == "host"
    assert asked == []


@pytest.mark.parametrize("hosts", ["127.0.0.1", "example.org, 127.*", "*"])
def test_a_setting_allows_hosts(site, monkeypatch, hosts):
    monkeypatch.setenv(web.HOSTS, hosts)
    assert ImageReader(None).read(f"{site[0]}/x.jpg")[0] == jpeg(3)


def test_images_allow_their_host(site, tmp_path):
    url, asked = site
    data = Conversations(
        jsonl(tmp_path / "x.jsonl", [row("a", f"{url}/x.jpg")]), images=[str(tmp_path), "http://127.0.0.1"]
    )
    assert is_picture(data.image(data[0].images[0]), 3, "JPEG")
    assert asked == ["127.0.0.1/x.jpg"]
    data = Conversations(str(tmp_path / "x.jsonl"))
    with pytest.raises(Unusable, match="nobody allowed to fetch pictures from 127.0.0.1"):
        data.image(data[0].images[0])


def test_a_host_sends_on_only_to_those_that_are_allowed(site, monkeypatch):
    url, asked = site
    monkeypatch.setenv(web.HOSTS, "127.0.0.1")
    assert ImageReader(None).read(f"{url}/to?{url}/x.jpg")[0] == jpeg(3)
    elsewhere = url.replace("127.0.0.1", "localhost")
    for target in (f"{elsewhere}/x.jpg", "http://169.254.169.254/latest", "file:///etc/passwd", "ftp://localhost/x"):
        assert refused(f"{url}/to?{target}").reason in ("host", "outside", "unreadable")
    assert not any(one.startswith("localhost") for one in asked)


@pytest.mark.parametrize(
    ("path", "reason", "said"),
    [("/none.jpg", "missing", "404"), ("/broken", "unreadable", "500"), ("/to?/to?", "missing", "404")],
)
def test_what_hosts_refuse(site, monkeypatch, path, reason, said):
    monkeypatch.setenv(web.HOSTS, "127.0.0.1")
    err = refused(f"{site[0]}{path}")
    assert err.reason == reason
    assert said in err.what


def test_a_picture_without_an_end(site, monkeypatch):
    monkeypatch.setenv(web.HOSTS, "127.0.0.1")
    monkeypatch.setenv("MMALIGN_IMAGE_BYTES", "1M")
    err = refused(f"{site[0]}/endless")
    assert "/endless has more than the 1 MiB that are read" in err.what
    assert err.fix.startswith("MMALIGN_IMAGE_BYTES=2M")


def test_a_host_that_is_not_there(monkeypatch):
    monkeypatch.setenv(web.HOSTS, "*")
    assert refused("http://127.0.0.1:1/x.jpg").reason == "unreadable"
    assert refused("http:///x.jpg").reason == "outside"
    assert refused("http://127.0.0.1:99999/x.jpg").reason == "unreadable"
