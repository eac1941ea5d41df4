"""Digits under changing light: training takes seconds, and norms can be told apart.

Each digit is resized to 8 to 12 pixels, placed anywhere in a frame of 12 by 12, and becomes
contrast * digit + brightness + noise. As brightness is a nuisance of each image, norms that average
over few images feel it: plain digits show no difference between batch norm at batch 2 and at 32.

The images are made from integers and NumPy's PCG64, so they are the same for everyone.
"""

import numpy as np
import torch

from normlab.lab.data import digits
from normlab.lab.data.arrays import fixed_permutation
from normlab.lab.data.dataset import DataError, Dataset

FRAME = 12  # pixels
SIZES = (8, 12)  # pixels, smallest and largest digit
CONTRAST = (0.3, 1.0)
BRIGHTNESS = (-1.0, 1.0)
NOISE = 0.1  # standard deviation
# values stored as 0 and as 255; beyond is clipped: five deviations of the noise
RANGE = (-1.5, 2.5)

# what a reader of a comparison on these images has to know
NOTE = (
    "The data are real digits (UCI, 8×8 pixels) under changing place, size and light, at 12×12 "
    "pixels: 4,096 training images of 1,347 digits, 900 validation images of 450 others. They were "
    "made so that norms differ within minutes: the brightness of an image says nothing about its "
    "class, which favours instance norm and makes statistics of few images unsteady. Expect "
    "smaller differences on large natural images, and try your own data."
)

# split: (images made, seed)
_SPLITS = {"train": (4096, 1), "validation": (900, 2)}


def load(what: str, split: str) -> Dataset | None:
    """4,096 training and 900 validation images, (N, 1, 12, 12), of different digits; no test."""
    if what:
        raise DataError(f"relit_digits takes nothing after a colon, got {what!r}")
    if split not in _SPLITS:
        return None
    values, labels = digits.original()
    order = fixed_permutation(len(labels)).numpy()
    chosen = order[: digits.NUM_TRAIN] if split == "train" else order[digits.NUM_TRAIN :]
    count, seed = _SPLITS[split]
    chosen = np.resize(chosen, count)  # over and over, until there are enough
    images = torch.from_numpy(_relight(values[chosen], seed))
    classes = tuple(str(k) for k in range(10))
    return Dataset(images[:, None], torch.from_numpy(labels[chosen].astype(np.int64)), classes)


def _relight(values: np.ndarray, seed: int) -> np.ndarray:
    """Digits with values 0 to 16, (N, 8, 8), to images, uint8 (N, 12, 12)."""
    random = np.random.Generator(np.random.PCG64(seed))
    n = len(values)
    sizes = random.integers(SIZES[0], SIZES[1] + 1, n)
    rows, columns = random.integers(0, FRAME - sizes + 1, (2, n))
    contrast = random.uniform(*CONTRAST, (n, 1, 1))
    brightness = random.uniform(*BRIGHTNESS, (n, 1, 1))
    noise = random.normal(0, NOISE, (n, FRAME, FRAME))

    placed = np.stack([_resize_weights(size) for size in range(FRAME + 1)])
    down, right = _shift(placed[sizes], rows), _shift(placed[sizes], columns)  # (n, 12, 8)
    # Products of small integers are exact in float64, in whatever order they are added.
    digit = down @ values.astype(np.float64) @ right.transpose(0, 2, 1)
    digit /= (16 * (2 * sizes) ** 2)[:, None, None]
    light = contrast * digit + brightness + noise
    low, high = RANGE
    stored: np.ndarray = np.rint(np.clip((light - low) / (high - low), 0, 1) * 255)
    return stored.astype(np.uint8)


def _resize_weights(size: int) -> np.ndarray:
    """Bilinear interpolation of 8 pixels to `size`, times 2 * size: integers, (12, 8)."""
    weights = np.zeros((FRAME, 8))
    for i in range(size):
        position = np.clip((2 * i + 1) * 8 - size, 0, 7 * 2 * size)  # of pixel i, times 2 * size
        left, fraction = divmod(int(position), 2 * size)
        weights[i, left] += 2 * size - fraction
        weights[i, min(left + 1, 7)] += fraction
    return weights


def _shift(weights: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Move the rows of each matrix down by its number of steps; rows that wrap around are zero."""
    source = (np.arange(FRAME) - steps[:, None]) % FRAME
    shifted: np.ndarray = np.take_along_axis(weights, source[:, :, None], axis=1)
    return shifted
