"""The batches of an epoch: order and augmentation as functions of (seed, epoch, index).

No generator is carried along, so a run resumed in the middle of an epoch sees what it would have
seen. Everything works on whole batches of uint8 images.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from normlab.lab.data.dataset import DataError, Dataset

_ORDER, _AUGMENT = 0, 1  # so that the two draw different numbers


class Batch(NamedTuple):
    """Images (B, C, H, W) uint8, labels (B,), and which images of the set they are (B,)."""

    images: Tensor
    labels: Tensor
    indices: Tensor


def num_batches(num_images: int, batch_size: int) -> int:
    """Whole batches in an epoch; the remainder is left for another epoch's order.

    Raises:
        DataError: not even one.
    """
    if num_images < batch_size:
        raise DataError(
            f"{num_images} training images do not fill one batch of {batch_size}; "
            f"choose a batch_size of at most {num_images}"
        )
    return num_images // batch_size


def batches(
    dataset: Dataset, batch_size: int, *, seed: int, epoch: int, augment: str, start: int = 0
) -> Iterator[Batch]:
    """The batches of an epoch from batch `start` on.

    Args:
        augment: "none"; "crop": pad by an eighth and crop at random; "crop_flip": mirror too.
    """
    num = len(dataset)
    order = torch.from_numpy(_generator(seed, epoch, _ORDER).permutation(num))
    moves = None if augment == "none" else _moves(num, seed, epoch, dataset, augment)
    for first in range(start * batch_size, num - batch_size + 1, batch_size):
        indices = order[first : first + batch_size]
        images = dataset.images[indices]
        if moves is not None:
            images = _moved(images, *(m[indices] for m in moves))
        yield Batch(images, dataset.labels[indices], indices)


def _generator(seed: int, epoch: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, epoch, purpose]))


def _moves(
    num: int, seed: int, epoch: int, dataset: Dataset, augment: str
) -> tuple[Tensor, Tensor, Tensor]:
    """For every image of the set, in pixels: where its crop starts (y, x); whether it mirrors."""
    random = _generator(seed, epoch, _AUGMENT)
    height, width = dataset.images.shape[2:]
    y = random.integers(0, 2 * (height // 8) + 1, num)
    x = random.integers(0, 2 * (width // 8) + 1, num)
    flip = random.random(num) < (0.5 if augment == "crop_flip" else 0)
    return torch.from_numpy(y), torch.from_numpy(x), torch.from_numpy(flip)


def _moved(images: Tensor, y: Tensor, x: Tensor, flip: Tensor) -> Tensor:
    size, channels, height, width = images.shape
    pad_y, pad_x = height // 8, width // 8
    padded = F.pad(images, (pad_x, pad_x, pad_y, pad_y))
    across = torch.arange(width)
    columns = x[:, None] + torch.where(flip[:, None], across.flip(0), across)
    rows = y[:, None] + torch.arange(height)
    places = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # (B, H, W)
    places = places.reshape(size, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, places).reshape(images.shape)
