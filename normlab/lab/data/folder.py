"""Own images in folders: folder:PATH with PATH/train|val|test/<class>/… or just PATH/<class>/….

Files are named like the formats of `pictures`. Hidden files, and files with other endings, are
ignored; links are refused.
"""

import hashlib
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from normlab.lab.data.dataset import DataError, Dataset
from normlab.lab.data.paths import MANY, SPLIT_NAMES, Paths, shown
from normlab.lab.data.pictures import ENDINGS, OnDisk, Pictures, decode, unreadable

__all__ = ["class_files", "dataset", "decode", "list_images", "load", "split_folder"]


def load(what: str, split: str) -> Dataset | None:
    """The images of one split, decoded as they are fetched; class names are the folders, sorted.

    Args:
        what: the folder.
        split: train, validation (also called val or valid) or test.

    Raises:
        DataError: no such folder, no images, fewer than two classes, or classes unknown in train.

    Warns:
        UserWarning: a class without images outside of train, or copies of training images.
    """
    if not what:
        raise DataError("folder needs a path: folder:PATH")
    try:
        return _load(Path(what), split)
    except OSError as error:
        raise unreadable(shown(error.filename or what), error) from error


def _load(root: Path, split: str) -> Dataset | None:
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{shown(root)} {found}; expected a folder with one folder per class")
    train, top = split_folder(root, "train"), split_folder(root, split)
    if train is None:
        raise DataError(f"{shown(root)} has no folder train; add one beside the other splits")
    if top is None:
        return None
    files = class_files(top)
    train_files = files if top == train else class_files(train)
    _check_classes(files, train_files, top, train)
    if top != train:
        _warn_of_copies(files, train_files, top, train)
    return dataset(top, files, sorted(train_files))


def dataset(top: Path, files: dict[str, Paths], classes: Sequence[str]) -> Dataset:
    """The files of each class below a folder, class by class."""
    parts = [files[name] for name in classes if name in files]
    counts = torch.tensor([len(files.get(name, ())) for name in classes])
    labels = torch.arange(len(classes)).repeat_interleave(counts)
    names = tuple(name.encode(errors="replace").decode() for name in classes)
    return Dataset(Pictures(OnDisk(Paths.joined(top, parts))), labels, names)


def list_images(path: Path) -> list[Path]:
    """The images that lie directly in a folder, by name; a file stands for itself."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{shown(path)} does not exist; expected an image or a folder of images")
    try:
        images = [Path(e.path) for e in os.scandir(path) if _is_image(e.name) and e.is_file()]
    except OSError as error:
        raise unreadable(shown(path), error) from error
    if not images:
        raise DataError(f"{shown(path)} has no images; endings known are {', '.join(ENDINGS)}")
    return sorted(images)


def split_folder(root: Path, split: str) -> Path | None:
    """Where a split's classes lie; without a folder train, the root is the training set."""
    names = {entry.name for entry in os.scandir(root) if entry.is_dir()}
    known = {name for folders in SPLIT_NAMES.values() for name in folders}
    if "train" not in names and not (names and names <= known):
        return root if split == "train" else None
    folder = next((root / name for name in SPLIT_NAMES[split] if name in names), None)
    if folder is not None:
        _refuse_link(folder, root)
    return folder


def class_files(top: Path) -> dict[str, Paths]:
    """The images below each class folder, sorted."""
    entries = sorted(os.scandir(top), key=lambda e: e.name)
    loose = [e.name for e in entries if _is_image(e.name) and not e.is_dir()]
    if loose:
        raise DataError(
            f"{shown(top)} itself holds {len(loose)} images, such as {loose[0]!r}; "
            "put each in a folder named after its class"
        )
    folders = [e.name for e in entries if e.is_dir() and not _is_hidden(e.name)]
    if not folders:
        raise DataError(f"{shown(top)} is empty; expected one folder of images per class")
    files = {}
    for name in folders:
        _refuse_link(top / name, top)
        files[name] = Paths(top, _images_below(name, top))
    return files


def _images_below(folder: str, top: Path) -> Iterator[str]:
    """Paths from the top, sorted: first what lies in a folder, then what lies in those below."""
    with os.scandir(os.path.join(top, folder)) as found:
        entries = sorted((e for e in found if not _is_hidden(e.name)), key=lambda e: e.name)
    below = [e for e in entries if e.is_dir()]
    images = [e for e in entries if _is_image(e.name) and not e.is_dir()]
    for entry in (*below, *images):
        if entry.is_symlink():
            _refuse_link(entry.path, top)
    for entry in images:
        yield f"{folder}/{entry.name}"
    for entry in below:
        yield from _images_below(f"{folder}/{entry.name}", top)


def _refuse_link(path: str | Path, top: Path) -> None:
    if os.path.islink(path):
        raise DataError(
            f"{shown(path)} is a link; links below {shown(top)} are not followed, "
            "replace it by what it points to"
        )


def _check_classes(
    files: dict[str, Paths], train: dict[str, Paths], top: Path, train_top: Path
) -> None:
    empty = [name for name in train if not train[name]]
    if empty:
        raise DataError(
            f"{shown(train_top / empty[0])} has no images; add some or remove the folder"
        )
    if len(train) == 1:
        raise DataError(
            f"{shown(train_top)} has one class ({next(iter(train))!r}); expected at least two"
        )
    unknown = sorted(files.keys() - train.keys())
    if unknown:
        raise DataError(
            f"{shown(top)} has classes that {shown(train_top)} has not: {_few(unknown)}; "
            "both must have the same class folders"
        )
    missing = [name for name in train if not files.get(name)]
    if len(missing) == len(train):
        raise DataError(f"{shown(top)} has no images; add some or remove the folder")
    if missing:
        warnings.warn(f"{shown(top)} has no images of {_few(missing)}", stacklevel=4)


def _warn_of_copies(
    files: dict[str, Paths], train: dict[str, Paths], top: Path, train_top: Path
) -> None:
    if sum(map(len, files.values())) + sum(map(len, train.values())) > MANY:
        return  # it would take longer than it is worth
    ours = [path for paths in files.values() for path in paths]
    theirs = [path for paths in train.values() for path in paths]
    by_size: dict[int, list[str]] = defaultdict(list)
    for path in theirs:
        by_size[os.path.getsize(path)].append(path)
    suspects = {path: by_size[s] for path in ours if (s := os.path.getsize(path)) in by_size}
    known = {_hash(path) for path in {p for paths in suspects.values() for p in paths}}
    copies = sorted(path for path in suspects if _hash(path) in known)
    if copies:
        warnings.warn(
            f"{len(copies)} images of {shown(top)} are in {shown(train_top)} too, such as "
            f"{shown(copies[0])}; results on them say nothing about new images",
            stacklevel=4,
        )


def _hash(path: str) -> bytes:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS) and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")
