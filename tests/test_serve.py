"""S13: the watched page is for this machine, this address and this site only."""

import http.client
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from fake_runs import folder_of_runs

from normlab.lab.report import serve
from normlab.lab.runs import RunError


@pytest.fixture
def server() -> Iterator[serve.Server]:
    made = serve.Server("<!doctype html>page", "7")
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def answer(
    server: serve.Server, path: str, hosts: tuple[str, ...] | None = None, **headers: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=5)
    try:
        connection.putrequest("GET", path, skip_host=True)
        for host in (f"127.0.0.1:{server.server_port}",) if hosts is None else hosts:
            connection.putheader("Host", host)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        got = connection.getresponse()
        return got.status, got.read()
    finally:
        connection.close()


def test_page_and_version_are_served_under_the_token(server: serve.Server) -> None:
    assert answer(server, f"/{server.token}/") == (200, b"<!doctype html>page")
    assert answer(server, f"/{server.token}/version") == (200, b"7")


def test_s13_only_loopback_listens(server: serve.Server) -> None:
    assert server.server_address[0] == "127.0.0.1"


def test_s13_tokens_are_long_and_differ() -> None:
    servers = [serve.Server("", "") for _ in range(3)]
    assert len({s.token for s in servers}) == 3
    assert all(len(s.token) == 32 for s in servers)  # 24 random bytes
    for s in servers:
        s.server_close()


@pytest.mark.parametrize(
    "path",
    ["/", "/version", "/x/", "//", "/../", "/%2e%2e/etc/passwd", "*", "/{token}x/", "/{token}"],
)
def test_s13_without_the_token_nothing_is_found(path: str, server: serve.Server) -> None:
    status, body = answer(server, path.format(token=server.token))
    assert status == 404
    assert b"page</" not in body


@pytest.mark.parametrize("path", ["/etc/passwd", "../report.html", "?x", "//"])
def test_s13_under_the_token_there_is_no_other_file(path: str, server: serve.Server) -> None:
    assert answer(server, f"/{server.token}/{path}")[0] == 404


@pytest.mark.parametrize(
    "hosts",
    [
        pytest.param(("evil.example",), id="rebound name"),
        pytest.param(("evil.example:{port}",), id="rebound name with our port"),
        pytest.param(("127.0.0.1",), id="without the port"),
        pytest.param(("127.0.0.1:{port}", "evil.example"), id="two"),
        pytest.param((), id="none"),
    ],
)
def test_s13_other_hosts_are_refused(hosts: tuple[str, ...], server: serve.Server) -> None:
    named = tuple(h.format(port=server.server_port) for h in hosts)
    status, body = answer(server, f"/{server.token}/", named)
    assert (status, body) == (403, b"this address is only for this machine\n")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1"])
def test_s13_other_origins_are_refused(origin: str, server: serve.Server) -> None:
    assert answer(server, f"/{server.token}/", Origin=origin)[0] == 403


def test_s13_other_methods_are_refused(server: serve.Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=5)
    connection.request("POST", f"/{server.token}/", body=b"x")
    assert connection.getresponse().status == 501
    connection.close()


def test_version_changes_with_any_file_of_a_run(tmp_path: Path) -> None:
    root = folder_of_runs(tmp_path / "runs", 1)
    before = serve._version(serve._state([root]))
    assert serve._version(serve._state([root])) == before
    metrics = next(root.glob("*/metrics.jsonl"))
    with metrics.open("a") as file:
        file.write('{"event": "epo')
    assert serve._version(serve._state([root])) != before


def test_f29_half_written_and_damaged_runs_are_on_the_watched_page(tmp_path: Path) -> None:
    root = folder_of_runs(tmp_path / "runs", 1)
    half, broken, unmade = sorted(root.iterdir())[:3]
    with (half / "metrics.jsonl").open("a") as file:
        file.write('{"event": "epo')
    (broken / "metrics.jsonl").write_text("not JSON\n")
    (unmade / "experiment.json").unlink()
    page = serve._page([root], "Live", "1")
    assert 'data-watch="1"' in page
    assert "2 damaged; 8 read." in page


def test_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be read"):
        serve.watch([tmp_path / "none"], title="", say=print)


def test_ctrl_c_ends_the_command_cleanly(tmp_path: Path) -> None:
    root = folder_of_runs(tmp_path / "runs", 1)
    out = tmp_path / "page.html"
    command = [sys.executable, "-m", "normlab.cli", "report", str(root), "--watch"]
    process = subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # what a shell starts in the background ignores SIGINT, and so would this
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout
    first = process.stdout.readline()
    assert re.match(r"report: http://127\.0\.0\.1:\d+/[\w-]{32}/ ", first)
    limit = time.monotonic() + 30
    while not out.exists() and time.monotonic() < limit:  # kept up to date as a file too
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=20)
    assert (process.returncode, rest, errors) == (0, "the report is no longer served\n", "")
    assert "data-watch" not in out.read_text().partition("<script>")[0]
