"""Own images in folders: folder:PATH with PATH/train|val|test/<class>/… or just PATH/<class>/….

JPEG, PNG, WEBP, BMP and GIF (its first frame), all turned into RGB: grey gets three equal channels,
16 bits become 8, CMYK is converted, transparent parts become white, photographs are turned as their
EXIF data says. Hidden files, and files with other endings, are ignored; links are refused.
"""

import hashlib
import os
import warnings
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from normlab.lab.data.dataset import DataError, Dataset

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
_ENDINGS = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif")
_MAX_PIXELS = 89_478_485  # Pillow's limit, which it only warns at
_THREADS = min(8, os.cpu_count() or 1)
_MAX_COMPARED = 50_000  # files; beyond, looking for copies takes longer than it is worth
_FOLDERS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}


def load(what: str, split: str, *, image_size: int | None = None) -> Dataset | None:
    """The images of one split, decoded as they are fetched; class names are the folders, sorted.

    Args:
        what: the folder.
        split: train, validation (also called val or valid) or test.
        image_size: height and width in pixels; None: all images must have one size already.

    Raises:
        DataError: no such folder, no images, fewer than two classes, or classes unknown in train.

    Warns:
        UserWarning: a class without images outside of train, or copies of training images.
    """
    if not what:
        raise DataError("folder needs a path: folder:PATH")
    try:
        return _load(Path(what), split, image_size)
    except OSError as error:
        raise _unreadable(error.filename or what, error) from error


def _load(root: Path, split: str, image_size: int | None) -> Dataset | None:
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{_shown(root)} {found}; expected a folder with one folder per class")
    train, top = _split_folder(root, "train"), _split_folder(root, split)
    if train is None:
        raise DataError(f"{_shown(root)} has no folder train; add one beside the other splits")
    if top is None:
        return None
    files = _class_files(top)
    train_files = files if top == train else _class_files(train)
    _check_classes(files, train_files, top, train)
    if top != train:
        _warn_of_copies(files, train_files, top, train)
    classes = sorted(train_files)
    paths = [path for name in classes for path in files.get(name, ())]
    labels = [label for label, name in enumerate(classes) for _ in files.get(name, ())]
    names = tuple(name.encode(errors="replace").decode() for name in classes)
    return Dataset(_Files(paths, image_size), torch.tensor(labels), names)


def list_images(path: Path) -> list[Path]:
    """The images that lie directly in a folder, by name; a file stands for itself."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{_shown(path)} does not exist; expected an image or a folder of images")
    try:
        images = [Path(e.path) for e in os.scandir(path) if _is_image(e.name) and e.is_file()]
    except OSError as error:
        raise _unreadable(path, error) from error
    if not images:
        raise DataError(f"{_shown(path)} has no images; endings known are {', '.join(_ENDINGS)}")
    return sorted(images)


def decode(path: str | Path, size: int | None = None) -> Tensor:
    """An image as uint8 RGB, (3, H, W); size: height and width to resize to, None: as stored.

    Raises:
        DataError: not an image in one of the formats, damaged, or of too many pixels.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ImportError('image files need Pillow: pip install "normlab[lab]"') from None
    shown = _shown(path)
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise _too_large(shown)
            if size is not None:
                image.draft(None, (size, size))  # JPEG: skip detail that is not needed
            rgb = _rgb(image)
            if size is not None:
                rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
            return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(shown) from None
    except UnidentifiedImageError:
        raise DataError(f"{shown} {_not_an_image(Path(path))}") from None
    except DataError:
        raise
    # Pillow raises SyntaxError, struct.error (ValueError) and others for damaged files
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        raise _unreadable(path, error) from error


def _rgb(image: "Picture") -> "Picture":
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _unreadable(path: str | Path, error: Exception) -> DataError:
    return DataError(f"{_shown(path)} cannot be read ({error}); replace or remove it")


def _too_large(shown: str) -> DataError:
    return DataError(f"{shown} has more than {_MAX_PIXELS:,} pixels; make it smaller or remove it")


def _not_an_image(path: Path) -> str:
    with path.open("rb") as stream:
        start = stream.read(16)
    if not start:
        return "is empty (0 bytes); replace or remove it"
    return f"is not an image in {', '.join(FORMATS)}: it starts with {start!r}; remove it"


def _split_folder(root: Path, split: str) -> Path | None:
    """Where a split's classes lie; without a folder train, the root is the training set."""
    names = {entry.name for entry in os.scandir(root) if entry.is_dir()}
    known = {name for folders in _FOLDERS.values() for name in folders}
    if "train" not in names and not (names and names <= known):
        return root if split == "train" else None
    folder = next((root / name for name in _FOLDERS[split] if name in names), None)
    if folder is not None:
        _refuse_link(folder, root)
    return folder


def _class_files(top: Path) -> dict[str, list[str]]:
    """The images below each class folder, sorted."""
    loose = sorted(e.name for e in os.scandir(top) if _is_image(e.name) and not e.is_dir())
    if loose:
        raise DataError(
            f"{_shown(top)} itself holds {len(loose)} images, such as {loose[0]!r}; "
            "put each in a folder named after its class"
        )
    folders = sorted(e.name for e in os.scandir(top) if e.is_dir() and not _is_hidden(e.name))
    if not folders:
        raise DataError(f"{_shown(top)} is empty; expected one folder of images per class")
    return {name: _images_below(top / name, top) for name in folders}


def _images_below(folder: Path, top: Path) -> list[str]:
    _refuse_link(folder, top)
    files: list[str] = []
    for where, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        images = sorted(name for name in names if _is_image(name))
        for name in [*folders, *images]:
            _refuse_link(os.path.join(where, name), top)
        files += [os.path.join(where, name) for name in images]
    return files


def _raise(error: OSError) -> None:
    raise error


def _refuse_link(path: str | Path, top: Path) -> None:
    if os.path.islink(path):
        raise DataError(
            f"{_shown(path)} is a link; links below {_shown(top)} are not followed, "
            "replace it by what it points to"
        )


def _check_classes(
    files: dict[str, list[str]], train: dict[str, list[str]], top: Path, train_top: Path
) -> None:
    empty = [name for name in train if not train[name]]
    if empty:
        raise DataError(
            f"{_shown(train_top / empty[0])} has no images; add some or remove the folder"
        )
    if len(train) == 1:
        raise DataError(
            f"{_shown(train_top)} has one class ({next(iter(train))!r}); expected at least two"
        )
    unknown = sorted(files.keys() - train.keys())
    if unknown:
        raise DataError(
            f"{_shown(top)} has classes that {_shown(train_top)} has not: {_few(unknown)}; "
            "both must have the same class folders"
        )
    missing = [name for name in train if not files.get(name)]
    if len(missing) == len(train):
        raise DataError(f"{_shown(top)} has no images; add some or remove the folder")
    if missing:
        warnings.warn(f"{_shown(top)} has no images of {_few(missing)}", stacklevel=4)


def _warn_of_copies(
    files: dict[str, list[str]], train: dict[str, list[str]], top: Path, train_top: Path
) -> None:
    ours = [path for paths in files.values() for path in paths]
    theirs = [path for paths in train.values() for path in paths]
    if len(ours) + len(theirs) > _MAX_COMPARED:
        return
    by_size: dict[int, list[str]] = defaultdict(list)
    for path in theirs:
        by_size[os.path.getsize(path)].append(path)
    suspects = {path: by_size[s] for path in ours if (s := os.path.getsize(path)) in by_size}
    known = {_hash(path) for path in {p for paths in suspects.values() for p in paths}}
    copies = sorted(path for path in suspects if _hash(path) in known)
    if copies:
        warnings.warn(
            f"{len(copies)} images of {_shown(top)} are in {_shown(train_top)} too, such as "
            f"{_shown(copies[0])}; results on them say nothing about new images",
            stacklevel=4,
        )


def _hash(path: str) -> bytes:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _is_image(name: str) -> bool:
    return name.lower().endswith(_ENDINGS) and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")


def _shown(path: str | Path) -> str:
    """A path for a message, without control characters."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(path))


class _Files:
    """Image files, decoded by a few threads as they are fetched."""

    def __init__(self, paths: list[str], size: int | None) -> None:
        self._paths, self._size = paths, size
        first = decode(paths[0], size)
        self.shape = torch.Size((len(paths), *first.shape))

    def __getitem__(self, indices: Tensor) -> Tensor:
        images = torch.empty((len(indices), *self.shape[1:]), dtype=torch.uint8)
        with ThreadPoolExecutor(_THREADS) as pool:
            for _ in pool.map(self._decode_into, images, indices.tolist()):
                pass
        return images

    def _decode_into(self, target: Tensor, index: int) -> None:
        image = decode(self._paths[index], self._size)
        if image.shape != target.shape:
            raise DataError(
                f"{_shown(self._paths[index])} is {_size(image)} pixels, "
                f"{_shown(self._paths[0])} {_size(self.shape)}; "
                "images differ in size, say --image-size N to resize them all"
            )
        target.copy_(image)


def _size(shape: Any) -> str:
    h, w = (shape.shape if isinstance(shape, Tensor) else shape)[-2:]
    return f"{h}×{w}"
