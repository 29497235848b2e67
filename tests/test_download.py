"""Weights by name or address, from a server on this machine."""

import gc
import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from minimask.errors import InputError
from minimask.weights import download
from minimask.weights.download import local_weights
from minimask.weights.published import PUBLISHED, published

pytest.importorskip("pooch")
# requests leaves the connection of a failed download to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CONTENT = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    asked: list[str] = []

    def do_GET(self):
        type(self).asked.append(self.path)
        if self.path.startswith("/missing"):
            return self.send_error(404)
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
            return self.end_headers()
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: 1000 if self.path.startswith("/cut") else None])

    def log_message(self, *arguments):
        """Says nothing."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Its address; the cache is `tmp_path`/cache."""
    monkeypatch.setenv("MINIMASK_CACHE", str(tmp_path / "cache"))
    Server.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def kept(tmp_path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache").glob("*"))


def test_a_file_is_fetched_once_and_kept(server, tmp_path):
    notes = []
    first = local_weights(f"{server}/models/net-{DIGEST[:8]}.pth", notes.append)
    assert first.read_bytes() == CONTENT and kept(tmp_path) == [f"net-{DIGEST[:8]}.pth"]
    assert local_weights(f"{server}/models/net-{DIGEST[:8]}.pth", notes.append) == first
    assert len(Server.asked) == 1 and notes == [f"kept as {first}"]


def test_names_without_a_hash_do_not_meet_in_the_cache(server, tmp_path):
    a, b = (local_weights(f"{server}/{folder}/model_final.pkl") for folder in "ab")
    assert (
        a != b and len(kept(tmp_path)) == 2 and Server.asked == ["/a/model_final.pkl", "/b/model_final.pkl"]
    )


def test_a_published_name_is_its_address_and_tells_the_licence(server, monkeypatch):
    name = "torchvision:maskrcnn_resnet50_fpn"
    entry = PUBLISHED[name]
    url = f"{server}/maskrcnn-{DIGEST[:8]}.pth"
    monkeypatch.setitem(PUBLISHED, name, type(entry)(url, entry.licence))
    notes = []
    assert local_weights(name, notes.append).read_bytes() == CONTENT
    assert notes[0] == f"{name}: {entry.licence}"


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/net-00000000.pth", "is not the file that its name promises"),
        ("/missing/net.pth", "cannot be fetched (404 Not Found)"),
        ("/cut/net.pth", "cannot be fetched (the connection was cut)"),
        ("/moved/net.pth", "cannot be fetched"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_kept(server, tmp_path, path, told):
    with pytest.raises(InputError) as error:
        local_weights(server + path)
    assert told in str(error.value) and "\n" not in str(error.value) and kept(tmp_path) == []
    del error
    gc.collect()


def test_export_fetches_what_it_writes(server, tmp_path, capsys):
    from minimask.command.cli import main

    url = f"{server}/weights.pth"
    assert main(["export", "--weights", url, str(tmp_path / "a.safetensors")]) == 2
    assert (
        "is none of the kinds that are read" in capsys.readouterr().err
    )  # the server's bytes are no weights
    assert Server.asked == ["/weights.pth"] and not (tmp_path / "a.safetensors").exists()


def test_without_a_network_the_mend_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIMASK_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        InputError, match=r"cannot be fetched \(no connection to 127\.0\.0\.1\)\..* give its path"
    ):
        local_weights("http://127.0.0.1:9/net.pth")  # nobody listens there
    assert kept(tmp_path) == []


def test_without_pooch_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIMASK_CACHE", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)
    with pytest.raises(InputError, match=re.escape("pip install 'minimask[download]'")):
        local_weights("https://example.invalid/net.pth")


@pytest.mark.parametrize(
    "source", ["file:///etc/passwd", "ftp://host/net.pth", "torchvision:maskrcnn_resnet50"]
)
def test_other_addresses_and_unknown_names_are_refused(source):
    with pytest.raises(
        InputError, match=r"http and https only|did you mean torchvision:maskrcnn_resnet50_fpn"
    ):
        local_weights(source)


@pytest.mark.parametrize("source", ["run/checkpoint.npz", "C:\\weights\\net.pth", "torchvision.pth", "a:b"])
def test_a_path_is_a_path(source):
    assert str(local_weights(source)) == source


def test_every_published_name_has_an_address_of_its_own():
    assert len({entry.url for entry in PUBLISHED.values()}) == len(PUBLISHED) >= 25
    for name, entry in PUBLISHED.items():
        assert published(name) is entry and entry.url.startswith("https://")
        has_hash = download._HASH.search(entry.url)
        assert bool(has_hash) == name.startswith("torchvision:")
