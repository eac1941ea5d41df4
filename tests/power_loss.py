"""What a disk may hold after a power loss, at every call that changes it.

Only what was synced is sure to be there: of a file its bytes at that time, of a folder its names.
Other names may be there, too, as disks write when they like: each state is seen with no such names,
with all, with those of one folder alone, and with those of all but one. A file that is there and
was never synced is empty.
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

CHANGING = (
    "mkdir", "open", "write", "fsync", "ftruncate", "rename", "replace", "link", "unlink", "rmdir",
)  # fmt: skip

Tree = dict[str, Any]  # of names: the bytes of a file, or the Tree of a folder


class Disk:
    """The folder whose power losses are recorded, and the states after them.

    Args:
        root: what is in it at first is taken as synced.

    Attributes:
        completed: whatever the test has seen completed; noted with each state from then on.
        losses: (completed, what is there), each once.
    """

    def __init__(self, root: Path) -> None:
        self.completed: Any = None
        self.losses: list[tuple[Any, Tree]] = []
        self._seen: set[tuple[Any, str]] = set()
        self._root = root
        self._held: dict[int, int] = {}  # inode: descriptor, so that no number is used twice
        self._bytes: dict[int, bytes] = {}  # synced, of files
        self._names: dict[int, dict[str, int]] = {}  # synced, of folders: the inode of each
        for folder, _, files in os.walk(root):
            for path in (folder, *(os.path.join(folder, name) for name in files)):
                self._sync(self._hold(path))

    @contextlib.contextmanager
    def recording(self) -> Iterator["Disk"]:
        """Record a power loss before every call that changes a disk, and one at the end."""
        with contextlib.ExitStack() as patches:
            for name in CHANGING:
                patches.enter_context(mock.patch.object(os, name, self._recorded(name)))
            yield self
        self._lose_power()
        for descriptor in self._held.values():
            os.close(descriptor)

    def _recorded(self, name: str) -> Any:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if name != "open" or args[1] & os.O_CREAT:
                self._lose_power()
            result = real(*args, **kwargs)
            if name == "fsync":
                self._sync(self._hold(f"/proc/self/fd/{args[0]}"))
            return result

        self._open = real if name == "open" else getattr(self, "_open", os.open)
        return call

    _open = staticmethod(os.open)

    def _hold(self, path: str) -> int:
        descriptor = self._open(path, os.O_RDONLY)
        inode = os.fstat(descriptor).st_ino
        if inode in self._held:
            os.close(descriptor)
        else:
            self._held[inode] = descriptor
        return inode

    def _is_folder(self, inode: int) -> bool:
        return stat.S_ISDIR(os.fstat(self._held[inode]).st_mode)

    def _sync(self, inode: int) -> None:
        if self._is_folder(inode):
            self._names[inode] = self._current(inode)
        else:
            size = os.fstat(self._held[inode]).st_size
            self._bytes[inode] = os.pread(self._held[inode], size, 0)

    def _current(self, folder: int) -> dict[str, int]:
        """The names in a folder, synced or not; none once it is removed."""
        descriptor = self._held[folder]
        return {
            name: self._hold(f"/proc/self/fd/{descriptor}/{name}")
            for name in os.listdir(descriptor)
        }

    def _lose_power(self) -> None:
        current: dict[int, dict[str, int]] = {}
        waiting = [self._hold(str(self._root)), *(i for i in self._names)]
        while waiting:
            inode = waiting.pop()
            if inode not in current and self._is_folder(inode):
                current[inode] = self._current(inode)
                waiting += current[inode].values()
        changed = {i for i, names in current.items() if names != self._names.get(i, {})}
        for unsynced in (
            set(),
            changed,
            *({i} for i in changed),
            *(changed - {i} for i in changed),
        ):
            names = {i: current[i] if i in unsynced else self._names.get(i, {}) for i in current}
            self._remember(self._tree(self._hold(str(self._root)), names))

    def _tree(self, folder: int, names: dict[int, dict[str, int]]) -> Tree:
        return {
            name: self._tree(inode, names) if inode in names else self._bytes.get(inode, b"")
            for name, inode in names[folder].items()
        }

    def _remember(self, tree: Tree) -> None:
        key = (self.completed, hashlib.sha256(repr(sorted(_flat(tree))).encode()).hexdigest())
        if key not in self._seen:
            self._seen.add(key)
            self.losses.append((self.completed, tree))


def restored(tree: Tree, folder: Path) -> Path:
    """A folder with what is there."""
    folder.mkdir()
    for name, item in tree.items():
        if isinstance(item, bytes):
            (folder / name).write_bytes(item)
        else:
            restored(item, folder / name)
    return folder


def _flat(tree: Tree, above: str = "") -> Iterator[tuple[str, bytes]]:
    yield above, b""
    for name, item in tree.items():
        if isinstance(item, bytes):
            yield f"{above}/{name}", item
        else:
            yield from _flat(item, f"{above}/{name}")
