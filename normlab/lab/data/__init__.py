"""Images by address: load("mnist", "train"), load("folder:/data/cells", "test", image_size=64).

What the sources do not have to know is here: holding out validation images, limits, resizing.
"""

import inspect
from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor

from normlab.lab import address as addresses
from normlab.lab.data.arrays import IN_MEMORY, fixed_permutation
from normlab.lab.data.dataset import DataError, Dataset, Images

SPLITS = ("train", "validation", "test")
_CHUNK = 512  # images

# The validation part read along with the last training set, until it is asked for.
_unclaimed: dict[tuple[str, int | None, float], Dataset] = {}


def load(
    address: str,
    split: str,
    *,
    image_size: int | None = None,
    validation: float = 0.2,
    limit: int | None = None,
) -> Dataset:
    """The images of one split, in memory where they fit into 1 GiB.

    Args:
        address: a source and what it reads, "relit_digits" or "folder:PATH".
        split: train, validation or test.
        image_size: height and width in pixels to resize to; None: as stored.
        validation: fraction of the training images held out where the source has no validation
            split; the same images in every run, whatever its seed.
        limit: keep at most this many, drawn once for all; None: all.

    Raises:
        AddressError: there is no such source.
        DataError: the data cannot be used, or has no such split.

    >>> len(load("digits", "train", limit=100))
    100
    """
    if split not in SPLITS:
        raise DataError(f"{split!r} is no split; there are {', '.join(SPLITS)}")
    key = (address, image_size, validation)
    dataset = _unclaimed.pop(key, None) if split == "validation" else None
    if dataset is None:
        dataset = _read(address, split, image_size, validation)
    if limit is not None and limit < len(dataset):
        dataset = dataset.select(fixed_permutation(len(dataset))[:limit])
    return replace(dataset, images=_in_memory(_resized(dataset.images, image_size)))


def _read(address: str, split: str, image_size: int | None, validation: float) -> Dataset:
    source, what = addresses.resolve("data", address)
    dataset = _from_source(source, what, split, image_size)
    if split == "train" and dataset is not None:
        held_out = _from_source(source, what, "validation", image_size)
        if held_out is None:
            rest, held = _hold_out(len(dataset), validation, address)
            dataset, held_out = dataset.select(rest), dataset.select(held)
        _unclaimed.clear()
        _unclaimed[address, image_size, validation] = held_out
    if split == "validation" and dataset is None:
        train = _from_source(source, what, "train", image_size)
        if train is not None:
            dataset = train.select(_hold_out(len(train), validation, address)[1])
    if dataset is not None:
        return dataset
    there = "; there are train and validation" if split == "test" else ""
    raise DataError(f"{address} has no {split} split{there}")


def _from_source(
    source: ModuleType, what: str, split: str, image_size: int | None
) -> Dataset | None:
    # A source that decodes files decodes them to the size at once.
    if "image_size" in inspect.signature(source.load).parameters:
        dataset: Dataset | None = source.load(what, split, image_size=image_size)
    else:
        dataset = source.load(what, split)
    return dataset


def _hold_out(count: int, fraction: float, address: str) -> tuple[Tensor, Tensor]:
    """Indices for training and for validation, each rising: neighbours in a file stay so."""
    if count < 2:
        raise DataError(f"{address}: {count} image cannot be split into train and validation")
    held = min(max(round(count * fraction), 1), count - 1)
    order = fixed_permutation(count)
    return order[held:].sort().values, order[:held].sort().values


def _resized(images: Images, size: int | None) -> Images:
    if size is None or tuple(images.shape[2:]) == (size, size):
        return images
    return _Resized(images, size)


def _in_memory(images: Images) -> Images:
    """Fetch images once for all if they are not a tensor yet and fit."""
    n, c, h, w = images.shape
    if isinstance(images, Tensor) or n * c * h * w > IN_MEMORY:
        return images
    fetched = torch.empty((n, c, h, w), dtype=torch.uint8)
    for indices in torch.split(torch.arange(n), _CHUNK):
        fetched[indices[0] : indices[-1] + 1] = images[indices]
    return fetched


class _Resized:
    """Another store's images, resized as they are fetched."""

    def __init__(self, images: Images, size: int) -> None:
        self._images, self._size = images, (size, size)
        self.shape = torch.Size((*images.shape[:2], size, size))

    def __getitem__(self, indices: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(
            self._images[indices], size=self._size, mode="bilinear", antialias=True
        )
