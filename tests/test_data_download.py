"""Fetching published sets: the right bytes, only over https, nothing half-done."""

import contextlib
import gzip
import http.server
import multiprocessing
import os
import re
import signal
import socket
import socketserver
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from files import sha256_of, tar_gz, tree

from normlab.lab.data import download, published
from normlab.lab.data.download import DownloadError, fetch, https_only
from normlab.lab.data.published import SETS, Archive

RAW = b"pixels" * 50
PACKED = gzip.compress(RAW)
TAR = tar_gz([("set/one", b"1"), ("set/two", b"2"), ("set/readme.html", b"hello")])


@pytest.fixture
def sets(monkeypatch):
    """Small sets of the three kinds in place of the published ones."""

    def archive(path, content, members):
        urls = (f"https://first.invalid/{path}", f"https://second.invalid/{path}")
        digests = {name: f"sha256:{sha256_of(raw)}" for name, raw in members.items()}
        return Archive(path, urls, len(content), sha256_of(content), digests)

    monkeypatch.setitem(SETS, "gz", (archive("A/raw/x.gz", PACKED, {"A/raw/x": RAW}),))
    monkeypatch.setitem(
        SETS, "tar", (archive("s.tar.gz", TAR, {"set/one": b"1", "set/two": b"2"}),)
    )
    monkeypatch.setitem(SETS, "plain", (archive("x.mat", RAW, {"x.mat": RAW}),))


@pytest.fixture
def server(monkeypatch):
    """A local server; `server.pages[path]` is what it sends or does, `server.asked` what for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            page = server.pages.get(self.path, lambda handler: handler.send_error(404))
            (page if callable(page) else _sends(page))(self)

        def log_message(self, *_):
            pass

    monkeypatch.setenv("no_proxy", "*")
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.pages, server.asked = {}, []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        port = server.server_address[1]
        opener = urllib.request.build_opener(download._HttpsRedirects)
        server.opener = lambda url: opener.open(
            f"http://127.0.0.1:{port}/{url.removeprefix('https://').partition('.')[0]}", timeout=0.3
        )
        yield server
        server.shutdown()


def _no_network(url):
    raise urllib.error.URLError("no network here")


KINDS = {
    "gz": (PACKED, {"A/raw/x.gz": PACKED, "A/raw/x": RAW}),
    "tar": (TAR, {"s.tar.gz": TAR, "set/one": b"1", "set/two": b"2"}),
    "plain": (RAW, {"x.mat": RAW}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_fetched_set_is_complete_and_is_not_fetched_again(sets, server, tmp_path, kind):
    content, expected = KINDS[kind]
    server.pages["/first"] = content
    seen = []
    note = lambda name, done, size: seen.append((name, done, size))  # noqa: E731
    assert fetch(kind, tmp_path, progress=note, opener=server.opener) == tmp_path
    assert tree(tmp_path) == expected
    assert seen[-1][1:] == (len(content), len(content))
    fetch(kind, tmp_path, opener=_no_network)


@pytest.mark.parametrize("kind", KINDS)
def test_archive_already_there_is_unpacked_without_network(sets, tmp_path, kind):
    content, expected = KINDS[kind]
    file = tmp_path / SETS[kind][0].path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    fetch(kind, tmp_path, opener=_no_network)
    assert tree(tmp_path) == expected


def test_damaged_member_is_repaired(sets, server, tmp_path):
    server.pages["/first"] = TAR
    fetch("tar", tmp_path, opener=server.opener)
    (tmp_path / "set/one").write_bytes(b"damaged")
    fetch("tar", tmp_path, opener=_no_network)
    assert (tmp_path / "set/one").read_bytes() == b"1"


def test_second_address_is_used_where_the_first_fails(sets, server, tmp_path):
    server.pages["/second"] = RAW
    fetch("plain", tmp_path, opener=server.opener)
    assert server.asked == ["/first", "/second"]


def _sends(body, *, length=None, wait=0.0):
    def answer(handler):
        handler.send_response(200)
        if length is not None:
            handler.send_header("Content-Length", str(length))
        handler.end_headers()
        handler.wfile.write(body[:100])
        handler.wfile.flush()
        time.sleep(wait)
        with contextlib.suppress(ConnectionError):  # by then nobody may be there
            handler.wfile.write(body[100:])

    return answer


def _redirects(target):
    def answer(handler):
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.end_headers()

    return answer


def _hangs_up(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)


FAULTS = {
    "F20: 404": (lambda handler: handler.send_error(404), "HTTP Error 404|Not Found"),
    "F20: 500": (lambda handler: handler.send_error(500), "HTTP Error 500|Internal Server Error"),
    "F20: broken off": (_sends(RAW[:100]), "broken off after 100 of 300 bytes"),
    "F20: broken off, its length announced": (
        _sends(RAW[:100], length=300),
        "IncompleteRead|broken off after 100 of 300 bytes",
    ),
    "F20: empty": (_sends(b""), "broken off after 0 of 300 bytes"),
    "F20: wrong length": (_sends(RAW[:-1]), "broken off after 299 of 300 bytes"),
    "121: too long": (_sends(RAW * 2), "sends more than the 300 bytes known"),
    "F20: one bit wrong": (
        _sends(bytes([RAW[0] ^ 1]) + RAW[1:]),
        f"what came does not have the sha256 {sha256_of(RAW)}",
    ),
    "F20: HTML instead of data": (_sends(b"<html>" * 10), "broken off after 60 of 300 bytes"),
    "F20: HTML of the right size": (_sends(b"<html>" * 50), "does not have the sha256"),
    "F20: redirect to file:": (
        _redirects("file:///etc/hostname"),
        "Redirection to url 'file:///etc/hostname' is not allowed",
    ),
    "F20: redirect to http:": (
        _redirects("http://127.0.0.1:9/x"),
        "to http:.*, which is not https",
    ),
    "F20: too slow": (_sends(RAW, wait=0.6), "timed out"),
    "F20: hangs up": (_hangs_up, "closed connection without response|reset by peer"),
}


@pytest.mark.parametrize(("answer", "message"), FAULTS.values(), ids=FAULTS)
def test_faulty_download_is_refused_and_nothing_is_left(sets, server, tmp_path, answer, message):
    server.pages["/first"] = server.pages["/second"] = answer
    with pytest.raises(DownloadError, match=message):
        fetch("plain", tmp_path, opener=server.opener)
    assert server.asked == ["/first", "/second"]
    assert tree(tmp_path) == {}


def test_119_no_network_says_what_to_fetch_by_hand_where_to_put_it_and_its_hash(tmp_path):
    with pytest.raises(DownloadError) as caught:
        fetch("svhn", tmp_path, opener=_no_network)
    for part in (
        "could not fetch train_32x32.mat (https://ufldl",
        "no network here",
        "https://ufldl.stanford.edu/housenumbers/train_32x32.mat\n",
        str(tmp_path / "train_32x32.mat"),
        "182,040,794 bytes",
        "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
        "normlab data svhn",
    ):
        assert part in str(caught.value)


def test_unknown_set_names_those_there_are(tmp_path):
    with pytest.raises(DownloadError, match="'mnits' cannot be fetched; there are cifar10, cifar1"):
        fetch("mnits", tmp_path)


def test_folder_that_cannot_be_written_is_named(tmp_path, sets):
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match=r"plain: cannot write in .*file/.*needs 300 bytes"):
        fetch("plain", tmp_path / "file", opener=_no_network)


@pytest.mark.parametrize("url", ["http://host.invalid/x", "file:///etc/hostname", "ftp://h/x"])
def test_only_https_is_opened_also_after_redirects(url):
    with pytest.raises(DownloadError, match="is not https"):
        https_only(url)
    request = urllib.request.Request("https://host.invalid/start")
    with pytest.raises(DownloadError, match="start redirects to .*, which is not https"):
        download._HttpsRedirects().redirect_request(request, None, 302, "Found", {}, url)


def test_all_published_addresses_are_https_and_hashes_have_their_length():
    for archives in SETS.values():
        for archive in archives:
            assert all(url.startswith("https://") for url in archive.urls)
            assert re.fullmatch("[0-9a-f]{64}", archive.sha256)
            for digest in archive.members.values():
                assert re.fullmatch("sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", digest)


def test_F19_two_fetches_at_once_download_once(sets, server, tmp_path):
    pytest.importorskip("fcntl")
    server.pages["/first"] = RAW
    threads = [
        threading.Thread(target=fetch, args=("plain", tmp_path), kwargs={"opener": server.opener})
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked == ["/first"]
    assert published.matches(tmp_path / "x.mat", f"sha256:{sha256_of(RAW)}")


def _child(function, *arguments):
    """A process that has all of this one, its sets and its server too."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs fork")
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def test_F19_of_two_processes_one_downloads_and_both_have_the_set(sets, server, tmp_path):
    pytest.importorskip("fcntl")
    server.pages["/first"] = _sends(RAW, wait=0.2)

    def fetch_and_check():
        fetch("plain", tmp_path, opener=server.opener)
        os._exit(0 if (tmp_path / "x.mat").read_bytes() == RAW else 1)

    children = [_child(fetch_and_check) for _ in range(2)]
    for child in children:
        child.join(20)
    assert [child.exitcode for child in children] == [0, 0]
    assert server.asked == ["/first"]


def _killed_at(monkeypatch, owner, name, call):
    """SIGKILL this process in the middle of the so many-th call of a function."""
    function, calls = getattr(owner, name), []

    def kill(*arguments):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)

    monkeypatch.setattr(owner, name, kill)


@pytest.mark.parametrize(
    ("kind", "owner", "name", "call"),
    [
        pytest.param("tar", download, "_copy", 1, id="before the first file"),
        pytest.param("tar", download, "_copy", 3, id="before the last file"),
        pytest.param("tar", Path, "replace", 1, id="before the first is renamed"),
        pytest.param("tar", Path, "replace", 2, id="between renames"),
        pytest.param("gz", download, "_copy", 1, id="gz, before it is unpacked"),
        pytest.param("gz", Path, "replace", 1, id="gz, before it is renamed"),
    ],
)
def test_F21_killed_while_unpacking_is_repaired(
    sets, tmp_path, monkeypatch, kind, owner, name, call
):
    content, expected = KINDS[kind]
    archive = tmp_path / SETS[kind][0].path
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(content)

    def unpack():
        _killed_at(monkeypatch, owner, name, call)
        fetch(kind, tmp_path, opener=_no_network)

    child = _child(unpack)
    child.join(20)
    assert child.exitcode == -signal.SIGKILL
    left = tree(tmp_path)
    assert left.keys() != expected.keys()
    assert all(left[path] == expected[path] for path in left.keys() & expected.keys())
    fetch(kind, tmp_path, opener=_no_network)
    assert tree(tmp_path) == expected


def test_F20_killed_while_downloading_leaves_only_a_part(sets, server, tmp_path, monkeypatch):
    server.pages["/first"] = RAW

    def download_some():
        _killed_at(monkeypatch, Path, "replace", 1)
        fetch("plain", tmp_path, opener=server.opener)

    child = _child(download_some)
    child.join(20)
    assert child.exitcode == -signal.SIGKILL
    assert list(tree(tmp_path)) == ["x.mat.part"]
    fetch("plain", tmp_path, opener=server.opener)
    assert tree(tmp_path) == {"x.mat": RAW}
