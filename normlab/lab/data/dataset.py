"""What every data source returns: images that are fetched by index, and their classes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor


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
    """

    images: Images
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> "Dataset":
        """The data set with only the examples at `indices`, in their order."""
        images = self.images
        chosen = images[indices] if isinstance(images, Tensor) else _Selection(images, indices)
        return replace(self, images=chosen, labels=self.labels[indices])


class _Selection:
    """Some of the images of another store, by index."""

    def __init__(self, images: Images, indices: Tensor) -> None:
        self._images, self._indices = images, indices
        self.shape = torch.Size((len(indices), *images.shape[1:]))

    def __getitem__(self, indices: Tensor) -> Tensor:
        return self._images[self._indices[indices]]
