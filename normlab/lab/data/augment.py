"""Changed training images: every draw is a function of (seed, epoch, index of the image).

"crop" and "crop_flip" move an image by whole pixels. "resized_crop" sees a random part of it at
the size of the whole; "imagenet" changes the colours of that part, too, as fb.resnet.torch does for
the paper of group norm: brightness, contrast and saturation in random order, then light along the
colours' principal axes. None of these clamps, so all are one affine map of an image's colours.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from normlab.lab.data.dataset import DataError, Images
from normlab.lab.data.views import Box, Resampled

# images at indices (B,) of the set in an epoch, changed, and how their colours are to be changed
Augmentation = Callable[[Tensor, int], tuple[Tensor, Tensor | None]]

_AUGMENT, _PART = 1, 2  # so that purposes draw different numbers; 0 is the order
_AREA, _ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # of a random part, as torchvision's RandomResizedCrop
_TRIES = 10
_JITTER = 0.4  # brightness, contrast and saturation change by factors within 1 ± this
_LIGHTING = 0.1  # standard deviation along the axes
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601
# of the colours of ImageNet, in 0..1: https://github.com/facebookarchive/fb.resnet.torch
_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
_EIGENVECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)


def augmentation(name: str, images: Images, seed: int) -> Augmentation:
    """How the images of a set are changed: none, crop, crop_flip, resized_crop or imagenet.

    Raises:
        DataError: "imagenet" for images that are neither grey nor of three colours.
    """
    return _AUGMENTATIONS[name](images, seed)


def generator(seed: int, epoch: int, purpose: int) -> np.random.Generator:
    """Draws for a whole epoch."""
    return np.random.Generator(np.random.PCG64([seed, epoch, purpose]))


class _Unchanged:
    def __init__(self, images: Images, seed: int) -> None:
        self._images = images

    def __call__(self, indices: Tensor, epoch: int) -> tuple[Tensor, None]:
        return self._images[indices], None


class _Moved:
    """Padded by an eighth with black, cropped at random to the size before, perhaps mirrored."""

    def __init__(self, images: Images, seed: int, mirrored: float) -> None:
        self._images, self._seed, self._mirrored = images, seed, mirrored
        self._epoch = -1

    def __call__(self, indices: Tensor, epoch: int) -> tuple[Tensor, None]:
        if epoch != self._epoch:
            self._moves, self._epoch = self._draw(epoch), epoch
        return _moved(self._images[indices], *(m[indices] for m in self._moves)), None

    def _draw(self, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """For every image of the set, in pixels: where its crop starts (y, x); if it mirrors."""
        random = generator(self._seed, epoch, _AUGMENT)
        num, _, height, width = self._images.shape
        y = random.integers(0, 2 * (height // 8) + 1, num)
        x = random.integers(0, 2 * (width // 8) + 1, num)
        flip = random.random(num) < self._mirrored
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


class _Parts:
    """A random part of each image, mirrored or not, perhaps with other colours."""

    def __init__(self, images: Images, seed: int, colours: bool) -> None:
        if colours and images.shape[1] not in (1, 3):
            raise DataError(
                f'augment "imagenet" changes colours: images must have 1 or 3 channels, these have '
                f'{images.shape[1]}; use augment "resized_crop"'
            )
        self._seed, self._colours = seed, colours
        # What is held in memory has one size; a store of pictures cuts them as they are decoded.
        whole: Any = images if hasattr(images, "parts") else Resampled(images, images.shape[2:])
        self._images = whole

    def __call__(self, indices: Tensor, epoch: int) -> tuple[Tensor, Tensor | None]:
        draws = [_Draws(self._seed, epoch, index) for index in indices.tolist()]
        images: Tensor = self._images.parts(indices, [d.place for d in draws])
        for image, drawn in zip(images, draws):
            if drawn.mirrored:
                image.copy_(image.flip(-1))
        if not self._colours:
            return images, None
        sums = images.flatten(2).numpy().sum(2, dtype=np.int64)  # whole numbers: exact
        means = np.broadcast_to(sums / math.prod(images.shape[2:]), (len(sums), 3))
        maps = np.stack([d.colour(mean) for d, mean in zip(draws, means)])
        return images, torch.from_numpy(maps.astype(np.float32))


class _Draws:
    """What is drawn for one image in one epoch, wherever it stands."""

    def __init__(self, seed: int, epoch: int, index: int) -> None:
        words = np.random.Philox(key=[seed, epoch], counter=[0, 0, index, _PART])
        random = np.random.Generator(words)
        self._sizes = random.random((_TRIES, 2))
        self._corner = random.random(2)
        self.mirrored = bool(random.random() < 0.5)
        self._factors = random.uniform(1 - _JITTER, 1 + _JITTER, 3)
        self._order = _ORDERS[random.integers(len(_ORDERS))]
        self._light = random.normal(0, _LIGHTING, 3)

    def place(self, height: int, width: int) -> Box:
        """A part of 8 to 100 % of the area, 3:4 to 4:3; a central one if ten draws do not fit."""
        for area, aspect in self._sizes:
            area = height * width * (_AREA[0] + area * (_AREA[1] - _AREA[0]))
            low, high = math.log(_ASPECT[0]), math.log(_ASPECT[1])
            ratio = math.exp(low + aspect * (high - low))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = int(self._corner[0] * (height - h + 1))
                left = int(self._corner[1] * (width - w + 1))
                return Box(left, top, left + w, top + h)
        w = min(width, round(height * _ASPECT[1]))
        h = min(height, round(width / _ASPECT[0]))
        left, top = (width - w) // 2, (height - h) // 2
        return Box(left, top, left + w, top + h)

    def colour(self, mean: np.ndarray) -> np.ndarray:
        """The affine map (3, 4) of colours, for an image of this mean colour, all in 0..255."""
        change = np.eye(3, 4)
        for step in self._order:
            change = _STEPS[step](change, mean, self._factors[step])
        change[:, 3] += 255 * _EIGENVECTORS @ (self._light * _EIGENVALUES)
        return change


def _brightness(change: np.ndarray, mean: np.ndarray, factor: float) -> np.ndarray:
    return factor * change


def _contrast(change: np.ndarray, mean: np.ndarray, factor: float) -> np.ndarray:
    grey = _LUMA @ (change @ np.append(mean, 1))
    return factor * change + (1 - factor) * np.array([0, 0, 0, grey])


def _saturation(change: np.ndarray, mean: np.ndarray, factor: float) -> np.ndarray:
    return factor * change + (1 - factor) * (_LUMA @ change)


_STEPS = (_brightness, _contrast, _saturation)
_ORDERS = tuple(permutations(range(len(_STEPS))))
_AUGMENTATIONS: dict[str, Callable[[Images, int], Augmentation]] = {
    "none": _Unchanged,
    "crop": partial(_Moved, mirrored=0.0),
    "crop_flip": partial(_Moved, mirrored=0.5),
    "resized_crop": partial(_Parts, colours=False),
    "imagenet": partial(_Parts, colours=True),
}
