"""Paths of many files below one folder, and the refusal of any that leads out of it."""

import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from normlab.lab.data.dataset import DataError

# what the folder, file or column of a split may be called
SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}
MANY = 50_000  # files; what needs a look at each is left out above


class Paths:
    """Files below a folder, in one piece of memory.

    A list of a million strings would be copied by every process forked from this one, as counting
    references writes to it.

    Args:
        root: the folder.
        relative: path of each file, from there.

    >>> list(Paths("data", ["cat/1.png", "dog/1.png"]))
    ['data/cat/1.png', 'data/dog/1.png']
    """

    def __init__(self, root: str | Path, relative: Iterable[str] = ()) -> None:
        self._root = str(root)
        text, ends = bytearray(), array("q", [0])
        for path in relative:
            text += os.fsencode(path)
            ends.append(len(text))
        self._text, self._ends = bytes(text), np.array(ends)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        relative = self._text[self._ends[index] : self._ends[index + 1]]
        return os.path.join(self._root, os.fsdecode(relative))

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    @classmethod
    def joined(cls, root: str | Path, parts: Iterable["Paths"]) -> "Paths":
        """All of several, each below the same folder."""
        whole, parts = cls(root), list(parts)
        whole._text = b"".join(part._text for part in parts)
        starts = np.cumsum([0, *(len(part._text) for part in parts)])
        ends = [part._ends[1:] + start for part, start in zip(parts, starts)]
        whole._ends = np.concatenate([np.zeros(1, np.int64), *ends])
        return whole


def shown(path: str | Path) -> str:
    """A path for a message, without control characters."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(path))


def checked(path: str, where: str) -> str:
    """A path from a file, if it leads down from the folder of that file.

    Raises:
        DataError: it is empty, absolute or goes up; says where it stands.
    """
    up = ".." in path and ".." in path.split("/")
    if not path or path[0] == "/" or up or "\\" in path or path[1:2] == ":":
        raise DataError(
            f"{where}: path {path!r} leads out of the folder; write it from there, as cat/1.png"
        )
    return path


def check_inside(paths: Paths, root: Path) -> None:
    """Refuse folders below `root` that are links out of it, and, if files are few, absent ones.

    Raises:
        DataError: names the first such path.
    """
    base = os.path.realpath(root)
    for folder in sorted({os.path.dirname(path) for path in paths}):
        if os.path.commonpath([base, os.path.realpath(folder)]) != base:
            raise DataError(
                f"{shown(folder)} is a link out of {shown(root)}; replace it by what it points to"
            )
    absent = [] if len(paths) > MANY else [path for path in paths if not os.path.isfile(path)]
    if absent:
        raise DataError(
            f"{shown(absent[0])} does not exist; {len(absent)} of {len(paths)} images listed are "
            f"not below {shown(root)}"
        )
