"""What every data source returns: images that are fetched by index, and their classes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

_LOOKED_AT = 256  # images of a set; to read all of a large one would take seconds a run


class DataError(ValueError):
    """Data that cannot be used: says which file, what is wrong, what was expected."""


class Images(Protocol):
    """Images fetched in batches; a uint8 tensor (N, C, H, W) is one."""

    @property
    def shape(self) -> Sequence[int]:
        """(N, C, H, W)"""

    def __getitem__(self, indices: Tensor) -> Tensor:
        """The images at int64 indices (B,), as uint8 (B, C, H, W)."""


@dataclass(frozen=True)
class Dataset:
    """Images and their classes.

    Args:
        images: (N, C, H, W), uint8, 0 black and 255 white; a tensor, or anything that fetches one.
        labels: (N,), int64, each below the number of classes.
        classes: the name of each class.
        domains: the number of the source that each class comes from; None: there is one.
        skipped: a sentence for each image that was left out, as it could not be read.
    """

    images: Images
    labels: Tensor
    classes: tuple[str, ...]
    domains: tuple[int, ...] | None = None
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self) -> str:
        """Short, and another one for other labels, or other pixels where they are in memory."""
        found = hashlib.sha256(self.labels.numpy(force=True).tobytes())
        if isinstance(self.images, Tensor) and len(self):
            spread = torch.linspace(0, len(self) - 1, min(len(self), _LOOKED_AT)).round().long()
            found.update(self.images[spread].numpy(force=True).tobytes())
        return found.hexdigest()[:8]

    def select(self, indices: Tensor) -> "Dataset":
        """The data set with only the examples at `indices`, in their order."""
        return replace(self, images=chosen(self.images, indices), labels=self.labels[indices])


def chosen(images: Any, indices: Tensor) -> Images:
    """Only the images at `indices`, in their order."""
    if isinstance(images, Tensor):
        return images[indices]
    if hasattr(images, "select"):
        selected: Images = images.select(indices)
        return selected
    return _Selection(images, indices)


class _Selection:
    """Some of the images of another store, by index."""

    def __init__(self, images: Images, indices: Tensor) -> None:
        self._images, self._indices = images, indices
        self.shape = torch.Size((len(indices), *images.shape[1:]))

    def __getitem__(self, indices: Tensor) -> Tensor:
        return self._images[self._indices[indices]]
