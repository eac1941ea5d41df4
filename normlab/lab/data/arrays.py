"""What arrays of images and labels must look like, whatever file they come from."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from normlab.lab.data.dataset import DataError

IN_MEMORY = 2**30  # bytes; larger image sets stay on disk and are read batch by batch
_CHANNELS = (1, 3, 4)
_MAX_CLASSES = 100_000
_CHUNK = 512  # images handled at a time where a copy is needed


def fixed_permutation(count: int) -> Tensor:
    """The same order of `count` examples in every run, (count,) int64."""
    return torch.from_numpy(np.random.Generator(np.random.PCG64(0)).permutation(count))


def check_image_type(dtype: np.dtype, where: str) -> None:
    """Refuse all but uint8: what 1.0 means in a float array cannot be known from the array."""
    if dtype == np.uint8:
        return
    advice = "if they run from 0 to 1, save (images * 255).round().astype('uint8')"
    if dtype.kind in "iub":
        advice = "save them scaled to 0..255 with .astype('uint8')"
    raise DataError(f"{where}: images are {dtype}, expected uint8 from 0 to 255; {advice}")


def channel_axis(shape: Sequence[int], where: str) -> int | None:
    """The axis of size 1, 3 or 4 of images (N, C, H, W) or (N, H, W, C); None: (N, H, W)."""
    if len(shape) == 3 and all(shape[1:]):
        return None
    expected = "expected (N, C, H, W), (N, H, W, C) or (N, H, W) with C 1, 3 or 4"
    if len(shape) != 4 or not all(shape[1:]):
        raise DataError(f"{where}: images have shape {tuple(shape)}, {expected}")
    axes = [axis for axis in (1, 3) if shape[axis] in _CHANNELS]
    if len(axes) == 1:
        return axes[0]
    found = "both axis 1 and axis 3 could be" if axes else "neither axis 1 nor axis 3 is"
    raise DataError(
        f"{where}: images have shape {tuple(shape)}, {found} the channels; {expected}, "
        "and H and W of other sizes"
    )


def channels_first(images: np.ndarray, where: str) -> Tensor:
    """Images as uint8 (N, C, H, W) in the memory of `images`, which is overwritten."""
    check_image_type(images.dtype, where)
    axis = channel_axis(images.shape, where)
    images = np.require(images, requirements=["C", "W"])
    if axis is None:
        return torch.from_numpy(images).unsqueeze(1)
    if axis == 1:
        return torch.from_numpy(images)
    n, h, w, c = images.shape
    flat = images.reshape(n, -1)  # an image fills the same bytes in both orders
    for start in range(0, n, _CHUNK):
        part = images[start : start + _CHUNK].transpose(0, 3, 1, 2).copy()
        flat[start : start + _CHUNK] = part.reshape(len(part), -1)
    return torch.from_numpy(flat).view(n, c, h, w)


def check_labels(
    labels: np.ndarray, num_images: int, num_classes: int | None, where: str
) -> Tensor:
    """Labels as int64 (N,), one for each image, each below num_classes.

    Args:
        labels: (N,) or (N, 1), whole numbers.
        num_images: N of the images.
        num_classes: None: as many as the largest label says.
        where: the file, for messages.
    """
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"{where}: labels are {labels.dtype}, expected whole numbers; "
            "save class numbers with .astype('int64')"
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(
            f"{where}: labels have shape {labels.shape}, expected (N,); "
            "for one-hot labels save labels.argmax(1)"
        )
    if len(labels) != num_images:
        raise DataError(f"{where}: {num_images} images but {len(labels)} labels; expected as many")
    if not num_images:
        raise DataError(f"{where}: no images (0 rows); save at least one")
    low, high = int(labels.min()), int(labels.max())
    limit = _MAX_CLASSES if num_classes is None else num_classes
    if low < 0 or high >= limit:
        wrong = low if low < 0 else high
        raise DataError(
            f"{where}: label {wrong} is out of range, expected 0 to {limit - 1}; "
            "number the classes from 0 and save the labels again"
        )
    return torch.from_numpy(labels.astype(np.int64))


def class_names(names: Sequence[str] | None, labels: np.ndarray, where: str) -> tuple[str, ...]:
    """The names given, else the numbers up to the largest of the training labels."""
    if names is not None:
        return tuple(str(name) for name in names)
    labels = check_labels(labels, len(labels), None, where).numpy()
    return tuple(str(k) for k in range(int(labels.max()) + 1))


def check_claim(shape: Sequence[int], item_bytes: int, stored_bytes: int, where: str) -> None:
    """Refuse a small file that unfolds to a huge array."""
    claimed = math.prod(shape) * item_bytes
    # deflate cannot do better than 1 to 1032
    if claimed > IN_MEMORY and claimed > 1100 * max(stored_bytes, 1):
        raise DataError(
            f"{where}: claims {claimed:,} bytes but stores {stored_bytes:,}; "
            "the file is damaged or made to fill the memory, get it again"
        )
