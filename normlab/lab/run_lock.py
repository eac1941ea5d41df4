"""Locks that keep two processes from one run.

flock, on Linux and macOS: the kernel grants it to one process and frees it when that dies, so it is
never stale and two takers cannot both win. The text in a lock only names the holder.
"""

import contextlib
import fcntl
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path


class RunError(ValueError):
    """A run's folder that cannot be made, read or written; names the file."""


class RunInUse(RunError):
    """A run that another process trains; names it."""


@contextlib.contextmanager
def locked(folder: Path, name: str) -> Iterator[int]:
    """The descriptor of a file in a run's folder that no other process has while entered.

    Raises:
        RunInUse: another process has it.
        RunError: it cannot be opened, is a link, or cannot be locked here.
    """
    path = folder / name
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise RunError(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunInUse(
                f"{folder} is in use by {name_of(os.pread(descriptor, 4096, 0))}; "
                "wait for it or stop it"
            ) from None
        except OSError as error:
            raise RunError(
                f"{path}: this file system has no locks ({error.strerror}); use a local folder"
            ) from error
        _held.add(descriptor)
        try:
            yield descriptor
        finally:
            _held.discard(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _let_go() -> None:
    """Forked children share the locks of their parent, and would keep them when that is killed."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in _held:
        os.dup2(nothing, descriptor, inheritable=False)  # its number must not become another file's
    os.close(nothing)
    _held.clear()


_held: set[int] = set()  # descriptors of the locks of this process
os.register_at_fork(after_in_child=_let_go)


def own_name() -> bytes:
    """What this process writes into a lock."""
    me = {"pid": os.getpid(), "host": platform.node(), "boot": _boot_id()}
    return json.dumps(me).encode()


def name_of(text: bytes) -> str:
    """The process that wrote this into a lock, in words."""
    try:
        holder = json.loads(text)
        name = f"process {holder['pid']} on {holder['host']}"
        return name if holder["boot"] == _boot_id() else f"{name}, before its last restart,"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "another process"


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
