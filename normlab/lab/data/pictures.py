"""Pictures in files: decoded as they are fetched, only the part that is seen, at the size wanted.

JPEG, PNG, WEBP, BMP and GIF (its first frame), all turned into RGB: grey gets three equal channels,
16 bits become 8, CMYK is converted, transparent parts become white, photographs are turned as their
EXIF data says.
"""

import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from normlab.lab.data.dataset import DataError
from normlab.lab.data.paths import Paths, shown
from normlab.lab.data.views import PLACES, Box, Place, resized, whole

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
ENDINGS = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif")
_MAX_PIXELS = 89_478_485  # Pillow's limit, which it only warns at
_THREADS = min(8, os.cpu_count() or 1)
_ORIENTATION = 0x0112  # an EXIF tag
_SIDEWAYS = (5, 6, 7, 8)  # its values that swap height and width
_SCALES = (8, 4, 2)  # by which a JPEG can be decoded smaller, faster


class Files(Protocol):
    """Where pictures come from."""

    def __len__(self) -> int: ...

    def open(self, index: int) -> tuple[str | IO[bytes], str]:
        """What Pillow can read, and its name for messages."""


class OnDisk:
    """A file for each picture."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def open(self, index: int) -> tuple[str, str]:
        """The path, twice."""
        path = self._paths[index]
        if os.path.islink(path):
            raise DataError(f"{shown(path)} is a link; replace it by what it points to")
        return path, shown(path)


class Pictures:
    """Pictures of any size, seen at one size.

    Args:
        files: where they come from.
        size: height and width in pixels; None: that of the first, which all must have.
        view: what is seen of each: "whole" or "centre".
        rows: which of the files, in order; None: all.
    """

    def __init__(
        self,
        files: Files,
        size: int | None = None,
        view: str = "whole",
        rows: Tensor | None = None,
    ) -> None:
        _pillow()
        self._files, self._size, self._view = files, size, view
        self._rows = torch.arange(len(files)) if rows is None else rows

    @functools.cached_property
    def shape(self) -> torch.Size:
        """(N, 3, H, W)"""
        if self._size is not None:
            seen = (self._size, self._size)
        else:
            seen = self._stored if self._view == "whole" else (min(self._stored),) * 2
        return torch.Size((len(self._rows), 3, *seen))

    def at(self, size: int | None, view: str) -> "Pictures":
        """The same pictures seen in another way."""
        other = Pictures(self._files, size, view, self._rows)
        other.shape  # noqa: B018  # reads the first picture here, not in each process
        return other

    def select(self, indices: Tensor) -> "Pictures":
        """Only the pictures at `indices`, in their order."""
        return Pictures(self._files, self._size, self._view, self._rows[indices])

    def __getitem__(self, indices: Tensor) -> Tensor:
        return self.parts(indices, [PLACES[self._view]] * len(indices))

    def parts(self, indices: Tensor, places: Sequence[Place]) -> Tensor:
        """A part of each picture, uint8 (B, 3, H, W)."""
        images = torch.empty((len(indices), *self.shape[1:]), dtype=torch.uint8)
        if len(indices) == 1 or get_worker_info() is not None:
            for _ in map(self._decode, images, indices.tolist(), places):
                pass
            return images
        with ThreadPoolExecutor(_THREADS) as pool:
            for _ in pool.map(self._decode, images, indices.tolist(), places):
                pass
        return images

    @functools.cached_property
    def _stored(self) -> tuple[int, int]:
        """Height and width of the first picture as it is."""
        source, name = self._files.open(int(self._rows[0]))
        height, width = _read(source, name, None, whole).shape[1:]
        return height, width

    def _decode(self, target: Tensor, index: int, place: Place) -> None:
        try:
            source, name = self._files.open(int(self._rows[index]))
            if self._size is None:
                place = functools.partial(self._of_one_size, name, place)
            size = (int(target.shape[1]), int(target.shape[2]))
            target.copy_(_read(source, name, size, place))
        except DataError as error:
            raise DataError(f"{error} (image {index} of its set)") from error

    def _of_one_size(self, name: str, place: Place, height: int, width: int) -> Box:
        if (height, width) != self._stored:
            first = self._files.open(int(self._rows[0]))[1]
            raise DataError(
                f"{name} is {height}×{width} pixels, {first} {self._stored[0]}×{self._stored[1]}; "
                "images differ in size, say --image-size N to resize them all"
            )
        return place(height, width)


def decode(
    path: str | Path, size: int | tuple[int, int] | None = None, place: Place = whole
) -> Tensor:
    """An image as uint8 RGB, (3, H, W).

    Args:
        path: the file.
        size: height and width to resize to; None: as stored.
        place: which part to cut first.

    Raises:
        DataError: not an image in one of the formats, damaged, or of too many pixels.
    """
    _pillow()
    size = (size, size) if isinstance(size, int) else size
    return _read(str(path), shown(path), size, place).contiguous()


def _pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise ImportError('image files need Pillow: pip install "normlab[lab]"') from None


def _read(source: str | IO[bytes], name: str, size: tuple[int, int] | None, place: Place) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(source, formats=FORMATS) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise _too_large(name)
            return _part(image, size, place)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(name) from None
    except UnidentifiedImageError:
        raise DataError(f"{name} {_not_an_image(source)}") from None
    except DataError:
        raise
    # Pillow raises SyntaxError, struct.error (ValueError) and others for damaged files
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        raise unreadable(name, error) from error


def _part(image: "Picture", size: tuple[int, int] | None, place: Place) -> Tensor:
    """The part that is seen, (3, H, W); everything that can be is done on that part alone."""
    from PIL import Image

    turned = image.getexif().get(_ORIENTATION, 1)
    width, height = image.size[::-1] if turned in _SIDEWAYS else image.size
    try:
        box = place(height, width)
    except DataError:  # of another size than others; if it is damaged, that is said first
        image.load()
        raise
    if size is None:
        return _tensor(_rgb(image, turned))
    scale = _draft(image, min((box.right - box.left) / size[1], (box.bottom - box.top) / size[0]))
    if turned != 1 or image.mode not in ("RGB", "L") or "transparency" in image.info:
        image = _rgb(image, turned)
    if box != (0, 0, width, height):
        # in torch, as it takes half the time of Pillow for parts of 224 to 500 pixels
        return resized(_tensor(image.crop(box.pixels(scale)))[None], size)[0]
    seen = (size[1], size[0])
    return _tensor(image if image.size == seen else image.resize(seen, Image.Resampling.BILINEAR))


def _tensor(image: "Picture") -> Tensor:
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def _draft(image: "Picture", shrinks: float) -> int:
    """Let a JPEG be decoded without detail that is not needed; by how much it shrinks."""
    for scale in _SCALES:
        if shrinks >= scale:
            wanted = (image.width // scale, image.height // scale)
            return scale if image.draft(None, wanted) is not None else 1
    return 1


def _rgb(image: "Picture", turned: int) -> "Picture":
    from PIL import Image, ImageOps

    if turned != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def unreadable(name: str, error: Exception) -> DataError:
    """What to say of a file that raised an error."""
    return DataError(f"{name} cannot be read ({error}); replace or remove it")


def _too_large(name: str) -> DataError:
    return DataError(f"{name} has more than {_MAX_PIXELS:,} pixels; make it smaller or remove it")


def _not_an_image(source: str | IO[bytes]) -> str:
    if isinstance(source, str):
        with open(source, "rb") as stream:
            start = stream.read(16)
    else:
        source.seek(0)
        start = source.read(16)
    if not start:
        return "is empty (0 bytes); replace or remove it"
    return f"is not an image in {', '.join(FORMATS)}: it starts with {start!r}; remove it"
