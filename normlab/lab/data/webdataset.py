"""Images in tar files, as the package webdataset writes them: webdataset:FOLDER or a pattern.

FOLDER has train-*.tar and perhaps val-*.tar and test-*.tar; a pattern FOLDER/train-{000..146}.tar,
or one .tar file, is all training images. A sample is two members of one name: NAME.jpg (or .png,
.webp, …) and NAME.cls with the number of its class.

Tars are not compressed, so an index of where the images lie gives any of them at once: order is
drawn as for any other set, and a resumed run goes on exactly where it was. Nothing is unpacked.
"""

import functools
import io
import re
import tarfile
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from normlab.lab.data.arrays import check_labels, class_names
from normlab.lab.data.dataset import DataError, Dataset
from normlab.lab.data.paths import SPLIT_NAMES, Paths, shown
from normlab.lab.data.pictures import ENDINGS, Pictures, unreadable

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAX_TARS = 100_000
_MAX_MEMBERS = 10_000_000  # of a tar
_MAX_IMAGE = 2**28  # bytes
_BLOCK = tarfile.BLOCKSIZE
_LABEL = re.compile(rb"\s*[0-9]{1,9}\s*")


def load(what: str, split: str) -> Dataset | None:
    """The images of one split; tars are read through once for an index, images when fetched.

    Raises:
        DataError: no such tars, or not of such samples.
    """
    if not what:
        raise DataError("webdataset needs tars: webdataset:FOLDER or FOLDER/train-{000..146}.tar")
    train = _tars(what, "train")
    tars = _tars(what, split)
    if train is None:
        raise DataError(f"{shown(what)} has no train-*.tar; name the tars of each split after it")
    if tars is None:
        return None
    train_labels = _index(train)[1]
    classes = class_names(None, train_labels, shown(what))
    samples, labels = _index(tars)
    return Dataset(
        Pictures(samples), check_labels(labels, len(samples), len(classes), shown(what)), classes
    )


def _tars(what: str, split: str) -> tuple[tuple[str, int, int], ...] | None:
    """Path, size and time of change of each tar of a split."""
    if Path(what).is_dir():
        folder = Path(what)
        found = [
            path for name in SPLIT_NAMES[split] for path in sorted(folder.glob(f"{name}-*.tar"))
        ]
    else:
        found = _expanded(what) if split == "train" else []
    try:
        stats = [(str(path), path.stat()) for path in found]
    except OSError as error:
        raise DataError(f"{shown(error.filename)} does not exist; check the path") from error
    return tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats) or None


def _expanded(pattern: str) -> list[Path]:
    """train-{000..002}.tar: three paths."""
    match = _RANGE.search(pattern)
    if match is None:
        return [Path(pattern)]
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + _MAX_TARS:
        raise DataError(f"{shown(pattern)}: {match[0]} is no range of at most {_MAX_TARS:,} tars")
    before, after, width = pattern[: match.start()], pattern[match.end() :], len(match[1])
    return [Path(f"{before}{number:0{width}}{after}") for number in range(first, last + 1)]


class _Samples:
    """Where the images of several tars lie."""

    def __init__(self, tars: Sequence[str], places: np.ndarray, names: Paths) -> None:
        self._tars, self._places, self._names = tuple(tars), places, names

    def __len__(self) -> int:
        return len(self._places)

    def open(self, index: int) -> tuple[IO[bytes], str]:
        """The bytes of an image, and the names of the tar and of the member."""
        tar, offset, size = self._places[index].tolist()
        name = f"{shown(self._tars[tar])}: {shown(self._names[index])}"
        try:
            with open(self._tars[tar], "rb", buffering=0) as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise unreadable(name, error) from error
        return io.BytesIO(content), name


@functools.lru_cache(maxsize=4)  # training tars are asked for with every split
def _index(tars: tuple[tuple[str, int, int], ...]) -> tuple[_Samples, np.ndarray]:
    """The samples of tars, in order, and their labels (N,)."""
    places, labels, names = array("q"), array("q"), []
    for number, (tar, _, _) in enumerate(tars):
        for name, (offset, size, label) in _read_tar(tar).items():
            places.extend((number, offset, size))
            labels.append(label)
            names.append(name)
    table = np.array(places, np.int64).reshape(-1, 3)
    samples = _Samples([tar for tar, _, _ in tars], table, Paths("", names))
    return samples, np.array(labels, np.int64)


def _read_tar(path: str) -> dict[str, tuple[int, int, int]]:
    """For each sample of a tar where its image lies, how many bytes it has, and its label."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    end = 0
    try:
        with open(path, "rb") as file, tarfile.open(path, "r:") as tar:
            for count, member in enumerate(tar, start=1):
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                if member.isdir():
                    continue
                _check_member(member, count, path)
                key, ending = _key(member.name)
                if f".{ending}" in ENDINGS:
                    _add(images, key, (member.offset_data, member.size), path)
                elif ending == "cls":
                    file.seek(member.offset_data)
                    content = file.read(min(member.size, 32))
                    _add(labels, key, _label(content, member.name, path), path)
            file.seek(end)
            if file.read(_BLOCK) != bytes(_BLOCK):  # tarfile takes any bad header for the end
                raise tarfile.ReadError(f"no member and no end of the tar at byte {end:,}")
    except tarfile.TarError as error:
        raise DataError(
            f"{shown(path)} is damaged or no uncompressed tar ({error}); copy it again, or unpack "
            "its compression"
        ) from error
    except OSError as error:
        raise unreadable(shown(path), error) from error
    odd = images.keys() ^ labels.keys()
    if odd:
        key = min(odd)
        lacks = "class (.cls)" if key in images else f"image ({', '.join(ENDINGS)})"
        raise DataError(f"{shown(path)}: {shown(key)} has no {lacks}; write both for each sample")
    if not images:
        raise DataError(f"{shown(path)} has no samples NAME.jpg, NAME.cls; expected at least one")
    return {key: (*place, labels[key]) for key, place in images.items()}


def _check_member(member: tarfile.TarInfo, count: int, path: str) -> None:
    wrong = {
        f"is one more than {_MAX_MEMBERS:,} members": count > _MAX_MEMBERS,
        "is a link or a device": not member.isfile(),
        "has holes": member.issparse(),
        f"has more than {_MAX_IMAGE:,} bytes": member.size > _MAX_IMAGE,
    }
    for why, is_so in wrong.items():
        if is_so:
            raise DataError(f"{shown(path)}: {shown(member.name)} {why}; pack plain files only")


def _key(name: str) -> tuple[str, str]:
    """The sample a member belongs to, and what it is of it: all after the first dot."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return folder + slash + stem, ending.lower()


def _label(content: bytes, name: str, path: str) -> int:
    if not _LABEL.fullmatch(content):
        raise DataError(
            f"{shown(path)}: {shown(name)} is {content!r}, expected the number of a class"
        )
    return int(content)


def _add(found: dict, key: str, value: object, path: str) -> None:
    if key in found:
        raise DataError(f"{shown(path)}: {shown(key)} comes twice; give each sample its own name")
    found[key] = value
