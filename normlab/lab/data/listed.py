"""Images that a file lists, each with its class: a path and a label a line."""

import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from normlab.lab.data.arrays import check_labels, class_names
from normlab.lab.data.dataset import DataError, Dataset
from normlab.lab.data.paths import Paths, check_inside, checked, shown
from normlab.lab.data.pictures import OnDisk, Pictures

_MAX_BYTES = 2**28  # several times a list of ImageNet
_NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Listing:
    """A list as it was read.

    Args:
        file: where it stands, for messages.
        root: the folder that paths start from.
        paths: of the images, in order.
        codes: for each image the place of its label in `labels`, (N,).
        labels: the different labels, in order of their first use.
    """

    file: Path
    root: Path
    paths: Paths
    codes: np.ndarray
    labels: tuple[str, ...]

    @classmethod
    def of(cls, file: Path, root: Path, rows: Iterable[tuple[int, str, str]]) -> "Listing":
        """A list of rows: number of the line, path from `root`, label.

        Raises:
            DataError: a path leads out of the folder.
        """
        known: dict[str, int] = {}
        codes = array("q")

        def paths() -> Iterator[str]:
            for line, path, label in rows:
                codes.append(known.setdefault(label, len(known)))
                yield checked(path, f"{shown(file)}:{line}")

        return cls(file, root, Paths(root, paths()), np.array(codes, np.int64), tuple(known))

    def dataset(self, numbers: Mapping[str, int], classes: Sequence[str]) -> Dataset:
        """The images, by the number of each label.

        Raises:
            DataError: nothing is listed, a label has no number, or a path is absent or a link out.
        """
        if not len(self.paths):
            raise DataError(f"{shown(self.file)} lists no images; expected at least one")
        unknown = [label for label in self.labels if label not in numbers]
        if unknown:
            first = self.paths[int((self.codes == self.labels.index(unknown[0])).argmax())]
            raise DataError(
                f"{shown(self.file)}: label {unknown[0]!r} of {shown(first)} is not a class of the "
                f"training set, which has {len(numbers)}; use the same classes in all splits"
            )
        check_inside(self.paths, self.root)
        table = torch.tensor([numbers[label] for label in self.labels])
        labels = table[torch.from_numpy(self.codes)]
        return Dataset(Pictures(OnDisk(self.paths)), labels, tuple(classes))


def numbered(train: Listing) -> tuple[dict[str, int], tuple[str, ...]]:
    """The number of each label of a training set, and the names of the classes.

    Labels that are all whole numbers are the numbers themselves; names are numbered in order.
    """
    if not all(_NUMBER.fullmatch(label) for label in train.labels):
        classes = tuple(sorted(train.labels))
        return {name: number for number, name in enumerate(classes)}, classes
    values = np.array([int(label) for label in train.labels])
    check_labels(values, len(values), None, shown(train.file))
    classes = class_names(None, values, shown(train.file))
    numbers = {name: number for number, name in enumerate(classes)}  # some perhaps without images
    return numbers | dict(zip(train.labels, values.tolist())), classes


def lines(file: Path) -> Iterator[str]:
    """The lines of a text file.

    Raises:
        DataError: it is absent, huge, or no UTF-8 text.
    """
    if not file.is_file():
        raise DataError(f"{shown(file)} is not a file; check the path")
    if file.stat().st_size > _MAX_BYTES:
        raise DataError(f"{shown(file)} has more than {_MAX_BYTES:,} bytes; split the list")
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            for number, line in enumerate(stream, start=1):
                if "\0" in line:
                    raise DataError(f"{shown(file)}:{number}: a NUL byte; save it as UTF-8 text")
                yield line
    except UnicodeDecodeError as error:
        raise DataError(f"{shown(file)} is not UTF-8 text ({error}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{shown(file)} cannot be read ({error}); check the file") from error
