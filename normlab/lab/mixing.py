"""Mixed images: each with its neighbour in the batch, in a share drawn for the whole batch.

Neighbours are 0 and 1, 2 and 3, …; as the order of images is drawn, that is any two. So a process
that has a part of the batch, cut at an even place, mixes as one that has all of it.

Sources: Zhang et al. 2017, https://arxiv.org/abs/1710.09412 (mixup), and Yun et al. 2019,
https://arxiv.org/abs/1905.04899 (CutMix).
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from normlab.lab.experiment import Experiment

_PURPOSE = 2  # so that these numbers are others than those of order and augmentation


class Mixing(NamedTuple):
    """How the images of a batch are mixed.

    Args:
        share: of the image itself, in its pixels and its label.
        box: where the neighbour is pasted, (top, bottom, left, right) as parts of height and width;
            None: all pixels are averages.
    """

    share: float
    box: tuple[float, float, float, float] | None = None


def draw(e: Experiment, epoch: int, number: int) -> Mixing | None:
    """How batch `number` of an epoch is mixed: a function of these and the seed; None: not."""
    if e.mixup is None and e.cutmix is None:
        return None
    random = np.random.Generator(np.random.PCG64([e.seed, epoch, _PURPOSE, number]))
    choices = [(a, pasted) for a, pasted in ((e.mixup, False), (e.cutmix, True)) if a is not None]
    alpha, pasted = choices[random.integers(len(choices))]
    share = float(random.beta(alpha, alpha))
    if not pasted:
        return Mixing(share)
    half = math.sqrt(1 - share) / 2
    y, x = random.random(2).tolist()
    top, bottom, left, right = (
        min(max(edge, 0.0), 1.0) for edge in (y - half, y + half, x - half, x + half)
    )
    return Mixing(share, (top, bottom, left, right))


def mixed(x: Tensor, mixing: Mixing) -> tuple[Tensor, float]:
    """The mixed images, and the share of its own that each has after boxes became pixels.

    Args:
        x: (B, C, H, W).
    """
    other = x[neighbours(len(x)).to(x.device)]
    if mixing.box is None:
        return torch.lerp(other, x, mixing.share), mixing.share
    height, width = x.shape[2:]
    top, bottom = (round(edge * height) for edge in mixing.box[:2])
    left, right = (round(edge * width) for edge in mixing.box[2:])
    pasted = x.clone()
    pasted[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
    return pasted, 1 - (bottom - top) * (right - left) / (height * width)


def neighbours(count: int) -> Tensor:
    """Whom each image is mixed with; the last of an odd number with itself.

    >>> neighbours(5).tolist()
    [1, 0, 3, 2, 4]
    """
    places = torch.arange(count)
    return torch.where(places ^ 1 < count, places ^ 1, places)
