"""Which part of a picture is seen, and at what size: the whole, the centre, or any box.

A picture of any size is seen as `size`. "whole" squashes it; "centre" is how networks are judged
that were trained on random parts: the short side becomes size / 0.875 and the middle is kept. Parts
are cut at whole pixels, and resized.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from normlab.lab.data.dataset import Images, chosen

CENTRE = 0.875  # of the short side


class Box(NamedTuple):
    """A part of a picture, in pixels from its upper left corner."""

    left: float
    top: float
    right: float
    bottom: float

    def pixels(self, scale: float = 1) -> tuple[int, int, int, int]:
        """The whole pixels it touches; of a picture that is smaller by `scale`."""
        low, high = self[:2], self[2:]
        left, top = (math.floor(edge / scale) for edge in low)
        right, bottom = (math.ceil(edge / scale) for edge in high)
        return left, top, right, bottom


# where to cut a picture of this height and width
Place = Callable[[int, int], Box]


def whole(height: int, width: int) -> Box:
    """All of a picture."""
    return Box(0, 0, width, height)


def centre(height: int, width: int) -> Box:
    """The square in the middle, 0.875 of the short side wide."""
    side = CENTRE * min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return Box(left, top, left + side, top + side)


PLACES: dict[str, Place] = {"whole": whole, "centre": centre}


def viewed(images: Any, size: int | None, view: str) -> Images:
    """Images as seen at a size; None: the size they have, of "centre" their short side."""
    if hasattr(images, "at"):
        seen: Images = images.at(size, view)
        return seen
    stored = tuple(images.shape[2:])
    if view == "centre":
        wanted = (size or min(stored),) * 2
    else:
        wanted = stored if size is None else (size, size)
    if view == "whole" and wanted == stored:
        return images  # type: ignore[no-any-return]
    return Resampled(images, wanted, view)


class Resampled:
    """Another store's images of one size, seen at another as they are fetched."""

    def __init__(self, images: Images, size: Sequence[int], view: str = "whole") -> None:
        self._images, self._view = images, view
        self._size = (int(size[0]), int(size[1]))
        self.shape = torch.Size((*images.shape[:2], *self._size))

    def __getitem__(self, indices: Tensor) -> Tensor:
        return self._cut(self._images[indices], PLACES[self._view])

    def parts(self, indices: Tensor, places: Sequence[Place]) -> Tensor:
        """A part of each image, (B, C, H, W)."""
        images = self._images[indices]
        return torch.cat([self._cut(image[None], place) for image, place in zip(images, places)])

    def select(self, indices: Tensor) -> "Resampled":
        """Only the images at `indices`, in their order."""
        return Resampled(chosen(self._images, indices), self._size, self._view)

    def _cut(self, images: Tensor, place: Place) -> Tensor:
        height, width = images.shape[2:]
        left, top, right, bottom = place(height, width).pixels()
        return resized(images[:, :, top:bottom, left:right], self._size)


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (N, C, H, W) at another height and width, each pixel a mean of those it covers."""
    if tuple(images.shape[2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)
