"""Folders of ImageNet and of sets made from it: classes named by WordNet numbers, like n01440764.

train/<class>/…, and the validation images either in such folders or all in one, with their classes
in a file; or a list for each split, train_list.txt and val_list.txt, of "relative/path label".
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from normlab.lab.data import folder
from normlab.lab.data.dataset import DataError, Dataset
from normlab.lab.data.listed import Listing, lines, numbered
from normlab.lab.data.paths import shown
from normlab.lab.data.pictures import unreadable

_LISTS = {"train": "train_list.txt", "validation": "val_list.txt"}
_KAGGLE = Path("ILSVRC/Data/CLS-LOC")  # where Kaggle's archive keeps the images
# "n01440764 tench, Tinca tinca" a line
_NAMES = ("words.txt", "LOC_synset_mapping.txt", "synset_words.txt")


def read(source: str, what: str, split: str) -> Dataset | None:
    """The images of one split of ImageNet or one of its kind; there is no test split with labels.

    Raises:
        DataError: no such folder, or in none of the layouts.
    """
    if not what:
        raise DataError(f"{source} needs a folder: {source}:FOLDER")
    root = Path(what)
    if not root.is_dir():
        raise DataError(f"{shown(root)} is not a folder; expected {source}, unpacked")
    if split not in _LISTS:
        return None
    try:
        if (root / _LISTS["train"]).is_file():
            return _from_lists(root, split)
        images = root / _KAGGLE if (root / _KAGGLE).is_dir() else root
        return _train(root, images) if split == "train" else _validation(root, images)
    except OSError as error:
        raise unreadable(shown(error.filename or what), error) from error


def _from_lists(root: Path, split: str) -> Dataset | None:
    if not (root / _LISTS[split]).is_file():
        return None
    train = _listing(root, "train")
    return (train if split == "train" else _listing(root, split)).dataset(*numbered(train))


def _listing(root: Path, split: str) -> Listing:
    file = root / _LISTS[split]
    first = next((path for _, path, _ in _pairs(file)), "")
    top = root / file.name.removesuffix("_list.txt")
    return Listing.of(file, top if (top / first).is_file() else root, _pairs(file))


def _pairs(file: Path) -> Iterator[tuple[int, str, str]]:
    """The lines "path label" of a list; spaces belong to the path."""
    for number, line in enumerate(lines(file), start=1):
        cells = line.rsplit(maxsplit=1)
        if len(cells) == 1:
            raise DataError(f"{shown(file)}:{number}: expected a path and a label: {line[:80]!r}")
        if cells:
            yield number, cells[0], cells[1]


def _train(root: Path, images: Path) -> Dataset:
    classes = _classes(root, images / "train")
    files = folder.class_files(images / "train")
    empty = [name for name in classes if not len(files[name])]
    if empty:
        raise DataError(f"{shown(images / 'train' / empty[0])} has no images; unpack it again")
    found = folder.dataset(images / "train", files, classes)
    return replace(found, classes=_named(root, classes))


def _validation(root: Path, images: Path) -> Dataset | None:
    top = images / "val"
    if not top.is_dir():
        return None
    classes = _classes(root, images / "train")
    if set(classes) & {entry.name for entry in os.scandir(top) if entry.is_dir()}:
        files = folder.class_files(top)
        unknown = sorted(files.keys() - set(classes))
        if unknown:
            raise DataError(f"{shown(top / unknown[0])} is no class of {shown(images / 'train')}")
        return replace(folder.dataset(top, files, classes), classes=_named(root, classes))
    for name, read_rows in _ANNOTATIONS.items():
        for file in (top / name, images / name, root / name):
            if file.is_file():
                flat = top / "images" if (top / "images").is_dir() else top
                numbers = {name: number for number, name in enumerate(classes)}
                listing = Listing.of(file, flat, read_rows(file))
                return listing.dataset(numbers, _named(root, classes))
    raise DataError(
        f"{shown(top)} has no folders of classes, and there is none of {', '.join(_ANNOTATIONS)} "
        f"that says what its images are; put one into {shown(root)}"
    )


def _annotations(file: Path) -> Iterator[tuple[int, str, str]]:
    """val_8.JPEG, class and box, with tabs between."""
    for number, line in enumerate(lines(file), start=1):
        cells = line.split("\t")
        if len(cells) < 2 and line.strip():
            raise DataError(f"{shown(file)}:{number}: expected an image, a tab and a class")
        if line.strip():
            yield number, cells[0], cells[1].strip()


def _solution(file: Path) -> Iterator[tuple[int, str, str]]:
    """ILSVRC2012_val_00000001,n03995372 85 1 499 272: the image, then classes and boxes."""
    for number, line in enumerate(lines(file), start=1):
        image, comma, objects = line.partition(",")
        if number == 1 or not line.strip():  # ImageId,PredictionString
            continue
        if not comma or not objects.split():
            raise DataError(f"{shown(file)}:{number}: expected an image, a comma and a class")
        yield number, f"{image}.JPEG", objects.split()[0]


_ANNOTATIONS: dict[str, Callable[[Path], Iterator[tuple[int, str, str]]]] = {
    "val_annotations.txt": _annotations,
    "LOC_val_solution.csv": _solution,
}


def _classes(root: Path, train: Path) -> list[str]:
    """The class folders, sorted; wnids.txt, where it is, says which there must be."""
    if not train.is_dir():
        raise DataError(f"{shown(root)} has no folder train; expected train/<class>/…")
    found = {entry.name for entry in os.scandir(train) if entry.is_dir() and entry.name[0] != "."}
    listed = root / "wnids.txt"
    wanted = {line.strip() for line in lines(listed)} - {""} if listed.is_file() else found
    if found != wanted:
        odd = min(found ^ wanted)
        raise DataError(
            f"{shown(train)} has {len(found)} classes, {shown(listed)} {len(wanted)}; {odd!r} is "
            "only in one of them, unpack the set again"
        )
    return sorted(found)


def _named(root: Path, classes: list[str]) -> tuple[str, ...]:
    """The first word for each class, with its number where others have it too."""
    file = next((root / name for name in _NAMES if (root / name).is_file()), None)
    if file is None:
        return tuple(classes)
    words = dict(line.strip().split(maxsplit=1) for line in lines(file) if len(line.split()) > 1)
    short = {name: words.get(name, name).partition(",")[0].strip() for name in classes}
    times = Counter(short.values())
    return tuple(f"{w} ({name})" if times[w] > 1 else w for name, w in short.items())
