"""Images by address: load("mnist", "train"), load("folder:/data/cells", "test", image_size=64).

What the sources do not have to know is here: holding out validation images, limits, resizing.
"""

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from normlab.lab import address as addresses
from normlab.lab.data.arrays import IN_MEMORY, fixed_permutation
from normlab.lab.data.batches import fetch
from normlab.lab.data.dataset import DataError, Dataset, Images
from normlab.lab.data.views import PLACES, viewed

SPLITS = ("train", "validation", "test")
_CHUNK = 512  # images

# The validation part read along with the last training set, until it is asked for.
_unclaimed: dict[tuple[str, float], Dataset] = {}


def load(
    address: str,
    split: str,
    *,
    image_size: int | None = None,
    validation: float = 0.2,
    limit: int | None = None,
    view: str = "whole",
    skip_bad: bool = False,
) -> Dataset:
    """The images of one split, in memory where they fit into 1 GiB.

    Args:
        address: a source and what it reads, "relit_digits" or "folder:PATH".
        split: train, validation or test.
        image_size: height and width in pixels to resize to; None: as stored.
        validation: fraction of the training images held out where the source has no validation
            split; the same images in every run, whatever its seed.
        limit: keep at most this many, drawn once for all; None: all.
        view: "whole" squashes images to their size; "centre" is for networks trained on random
            parts: the short side becomes image_size / 0.875, and the middle is kept. Training
            images then stay where they are, as their parts are cut from the originals.
        skip_bad: leave out images that cannot be read, and say so in `skipped`. Training images
            then stay where they are, for `Batches` to replace those.

    Raises:
        AddressError: there is no such source.
        DataError: the data cannot be used, or has no such split.

    Warns:
        UserWarning: images were left out.

    >>> len(load("digits", "train", limit=100))
    100
    """
    for name, value, known in (("split", split, SPLITS), ("view", view, tuple(PLACES))):
        if value not in known:
            raise DataError(f"{value!r} is no {name}; there are {', '.join(known)}")
    dataset = _unclaimed.pop((address, validation), None) if split == "validation" else None
    if dataset is None:
        dataset = _read(address, split, validation)
    if limit is not None and limit < len(dataset):
        dataset = dataset.select(fixed_permutation(len(dataset))[:limit])
    dataset = replace(dataset, images=viewed(dataset.images, image_size, view))
    if split == "train" and view == "centre":
        return dataset
    try:
        dataset = replace(dataset, images=_in_memory(dataset.images))
    except DataError:
        if not skip_bad:
            raise
    if not skip_bad or split == "train" or isinstance(dataset.images, Tensor):
        return dataset
    kept = _readable(dataset)
    return replace(kept, images=_in_memory(kept.images))


def _read(address: str, split: str, validation: float) -> Dataset:
    source, what = addresses.resolve("data", address)
    dataset: Dataset | None = source.load(what, split)
    if split == "train" and dataset is not None:
        held_out = source.load(what, "validation")
        if held_out is None:
            rest, held = _hold_out(len(dataset), validation, address)
            dataset, held_out = dataset.select(rest), dataset.select(held)
        _unclaimed.clear()
        _unclaimed[address, validation] = held_out
    if split == "validation" and dataset is None:
        train = source.load(what, "train")
        if train is not None:
            dataset = train.select(_hold_out(len(train), validation, address)[1])
    if dataset is not None:
        return dataset
    there = "; there are train and validation" if split == "test" else ""
    raise DataError(f"{address} has no {split} split{there}")


def _hold_out(count: int, fraction: float, address: str) -> tuple[Tensor, Tensor]:
    """Indices for training and for validation, each rising: neighbours in a file stay so."""
    if count < 2:
        raise DataError(f"{address}: {count} image cannot be split into train and validation")
    held = min(max(round(count * fraction), 1), count - 1)
    order = fixed_permutation(count)
    return order[held:].sort().values, order[:held].sort().values


def _readable(dataset: Dataset) -> Dataset:
    """The set without the images that cannot be read."""
    indices: list[Tensor] = []
    skipped: tuple[str, ...] = ()
    for part in torch.split(torch.arange(len(dataset)), _CHUNK):
        batch = fetch(dataset, part, skip_bad=True)
        indices.append(batch.indices)
        skipped += batch.skipped
    if not skipped:
        return dataset
    if len(skipped) == len(dataset):
        raise DataError(f"none of {len(dataset)} images can be read; the first: {skipped[0]}")
    warnings.warn(f"{len(skipped)} of {len(dataset)} images: {skipped[0]}, …", stacklevel=3)
    return replace(dataset.select(torch.cat(indices)), skipped=skipped)


def _in_memory(images: Images) -> Images:
    """Fetch images once for all if they are not a tensor yet and fit."""
    n, c, h, w = images.shape
    if isinstance(images, Tensor) or n * c * h * w > IN_MEMORY:
        return images
    fetched = torch.empty((n, c, h, w), dtype=torch.uint8)
    for indices in torch.split(torch.arange(n), _CHUNK):
        fetched[indices[0] : indices[-1] + 1] = images[indices]
    return fetched
