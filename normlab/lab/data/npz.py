"""Own images in NumPy files: npz:FILE.npz, or npz:FOLDER with train.npz, validation.npz, test.npz.

Each file holds `images`, uint8 (N, H, W, C), (N, C, H, W) or (N, H, W), and `labels`, whole numbers
(N,); `classes`, names as text, is optional.
"""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from normlab.lab.data.arrays import channels_first, check_claim, check_labels, class_names
from normlab.lab.data.dataset import DataError, Dataset

_SPLITS = ("train", "validation", "test")


def load(what: str, split: str) -> Dataset | None:
    """The images of one file; a single FILE.npz is all training images.

    Raises:
        DataError: no such file, not an npz file, or arrays of other names, types or shapes.
    """
    if not what:
        raise DataError("npz needs a file or a folder: npz:PATH")
    path = Path(what)
    if not path.exists():
        raise DataError(f"{path} does not exist; expected an .npz file or a folder of them")
    train = path / "train.npz" if path.is_dir() else path
    if not train.exists():
        raise DataError(f"{path} has no train.npz; name the files {_listed(_SPLITS)}")
    file = train if split == "train" else path / f"{split}.npz"
    if (not path.is_dir() and split != "train") or not file.exists():
        return None
    with _open(train) as arrays:
        names = _array(arrays, "classes", train).ravel().tolist() if "classes" in arrays else None
        train_labels = _array(arrays, "labels", train)
    classes = class_names(names, train_labels, str(train))
    with _open(file) as arrays:
        labels = _array(arrays, "labels", file)
        images = channels_first(_array(arrays, "images", file), str(file))
    return Dataset(
        images, check_labels(labels, len(images), len(classes), str(file)), tuple(classes)
    )


@contextlib.contextmanager
def _open(file: Path) -> Iterator[np.lib.npyio.NpzFile]:
    try:
        stream = file.open("rb")
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error}); check the path") from error
    with stream:
        if not zipfile.is_zipfile(stream):
            stream.seek(0)
            raise DataError(
                f"{file} is not an .npz file (first bytes {stream.read(8)!r}), or cut short; "
                "save it with numpy.savez"
            )
        stream.seek(0)
        try:
            arrays = np.load(stream, allow_pickle=False)
        except (zipfile.BadZipFile, ValueError, OSError) as error:
            raise DataError(f"{file} is damaged ({error}); copy it again") from error
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise DataError(f"{file} is not an .npz file; save it with numpy.savez")
        with arrays:
            yield arrays


def _array(arrays: np.lib.npyio.NpzFile, name: str, file: Path) -> np.ndarray:
    if name not in arrays:
        raise DataError(
            f"{file} has no array {name!r}; there are {_listed(arrays.files)}; "
            "expected images and labels"
        )
    assert arrays.zip is not None  # it is open
    member = next(m for m in arrays.zip.infolist() if m.filename in (name, f"{name}.npy"))
    check_claim((member.file_size,), 1, member.compress_size, str(file))
    try:
        array = arrays[name]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
        raise DataError(
            f"{file}: array {name!r} cannot be read ({error}); save a plain array of numbers"
        ) from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{file}: {name!r} is not an array; save it with numpy.savez")
    return array


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "") if names else "none"
