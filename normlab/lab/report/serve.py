"""The page while runs go on: served to this machine only, made anew when a run's files change.

127.0.0.1, a random token in the address, and Host and Origin checked, so that neither another
machine nor a page of another site (DNS rebinding) can read it.
"""

import hmac
import secrets
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from normlab.lab import report
from normlab.lab.analysis import LAST_EPOCHS, analyse
from normlab.lab.manage import found_in

_FILES = ("experiment.json", "status.json", "metrics.jsonl", "environment.json")
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def watch(
    paths: Sequence[Path],
    *,
    title: str,
    out: Path | None = None,
    say: Callable[[str], Any],
    seconds: float = 2.0,
    by: str = "samples",
    last: int = LAST_EPOCHS,
) -> int:
    """Serve the page of the runs in `paths` until Ctrl-C.

    Args:
        paths: folders of runs, or folders of such folders.
        out: HTML file, or a folder for report.html, that is kept up to date too; None: no file.
        say: called with the address.
        seconds: between two looks at the folders.
        by: what error curves are against at first: samples, epochs or steps.
        last: epochs at the end whose median is a run's result.

    Raises:
        RunError: a folder that is not there.
    """
    file = out / "report.html" if out and out.suffix != ".html" else out
    page = partial(_page, paths, title, by=by, last=last)
    server: Server | None = None
    thread: Thread | None = None
    try:
        seen = _state(paths)
        server = Server(page(_version(seen)), _version(seen))
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
        thread.start()
        say(f"report: {server.address}  (Ctrl-C ends it)")
        if file:
            report.write(file, page(""))
        pause = seconds
        while True:
            time.sleep(pause)
            now, started = _state(paths), time.monotonic()
            if now != seen:
                seen = now
                server.show(page(_version(seen)), _version(seen))
                if file:
                    report.write(file, page(""))
                pause = max(seconds, 4 * (time.monotonic() - started))  # the runs come first
    except KeyboardInterrupt:
        say("the report is no longer served")
        return 0
    finally:
        if server and thread:
            server.shutdown()
            thread.join()
            server.server_close()


class Server(ThreadingHTTPServer):
    """One page and its version, to whoever knows the address and came from this machine."""

    daemon_threads = True

    def __init__(self, page: str, version: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token = secrets.token_urlsafe(24)
        self.show(page, version)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"

    @property
    def hosts(self) -> tuple[str, str]:
        return f"127.0.0.1:{self.server_port}", f"localhost:{self.server_port}"

    def show(self, page: str, version: str) -> None:
        """Replace the page; a request sees the old one or the new one."""
        self.content = {
            "": ("text/html; charset=utf-8", page.encode()),
            "version": ("text/plain; charset=utf-8", version.encode()),
        }


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "normlab", ""
    timeout = 10  # seconds a client may take for its request

    def do_GET(self) -> None:
        refused = self._refused()
        if refused:
            self._answer(*refused)
            return
        found = self.server.content.get(self.path.removeprefix(f"/{self.server.token}/"))
        if found is None:
            self._answer(404, "text/plain", b"there is one page here\n")
            return
        self._answer(200, *found)

    do_HEAD = do_GET

    def _refused(self) -> tuple[int, str, bytes] | None:
        """Why a request is not answered; a wrong token looks like an empty server."""
        hosts = self.server.hosts
        if self.headers.get_all("Host", []) not in ([h] for h in hosts):
            return 403, "text/plain", b"this address is only for this machine\n"
        origin = self.headers.get("Origin")
        if origin is not None and origin not in [f"http://{h}" for h in hosts]:
            return 403, "text/plain", b"this page is not for other sites\n"
        given = self.path.split("/")[1] if self.path.count("/") > 1 else ""
        if not hmac.compare_digest(given.encode(), self.server.token.encode()):
            return 404, "text/plain", b"not found\n"
        return None

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": len(body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the token would be in the log."""


def _page(
    paths: Sequence[Path],
    title: str,
    version: str,
    *,
    by: str = "samples",
    last: int = LAST_EPOCHS,
) -> str:
    """The page as text; "" as version asks no server for a newer one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # half-written lines are what is expected here
        runs, damaged = found_in(paths)
        a = analyse(runs, damaged, last=last)
        return report.render(a, runs, title=title, watch=version, by=by)


def _state(paths: Sequence[Path]) -> dict[str, tuple[int, int]]:
    """Size and time of every file that the page is made from."""
    state = {}
    for path in paths:
        folders = [path, *(p for p in path.iterdir() if p.is_dir())] if path.is_dir() else []
        for file in (folder / name for folder in folders for name in _FILES):
            try:
                found = file.stat()
            except OSError:
                continue
            state[str(file)] = found.st_size, found.st_mtime_ns
    return state


def _version(state: dict[str, tuple[int, int]]) -> str:
    """Differs whenever the state does."""
    return report.digest(repr(sorted(state.items())))
