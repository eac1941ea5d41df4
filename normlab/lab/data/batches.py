"""The batches of a training: order and augmentation as functions of (seed, epoch, index).

No generator is carried along, so a run resumed in the middle of an epoch sees what it would have
seen, and processes that fetch batches need not know of each other.
"""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from normlab.lab.data.augment import augmentation, generator
from normlab.lab.data.dataset import DataError, Dataset

_ORDER = 0  # augmentation draws other numbers
_MOST_TRIES = 100  # unreadable images in a row: the disk has gone rather than an image


class Batch(NamedTuple):
    """Some images of a set.

    Args:
        images: uint8 (B, C, H, W).
        labels: int64 (B,).
        indices: which images of the set they are, int64 (B,).
        colour: for each image the affine map of its colours y = A x + b, [A b] float32 (B, 3, 4), x
            in 0..255, that is still to be done; None: none.
        skipped: a sentence for each unreadable image that was replaced or left out.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    colour: Tensor | None = None
    skipped: tuple[str, ...] = ()


class Batches:
    """The batches of a training, for torch's DataLoader: each a function of (epoch, number).

    Args:
        dataset: the training images.
        batch_size: images of a batch, in all processes together.
        seed: decides order and augmentation.
        augment: "none"; "crop": pad by an eighth and crop at random; "crop_flip": mirror too;
            "resized_crop": a random part at the size of the whole, mirrored or not; "imagenet": and
            with other colours.
        order: None: images are drawn without regard to classes; "class", "domain": batches of
            one class or domain each.
        part: which images of each batch are fetched; None: all.
        skip_bad: replace an image that cannot be read by the next that can, and say so.

    Raises:
        DataError: not one whole batch.

    >>> images = Dataset(torch.zeros(10, 3, 4, 4, dtype=torch.uint8), torch.arange(10), tuple("ab"))
    >>> batches = Batches(images, 4, seed=0, augment="none")
    >>> len(batches), batches[3, 1].images.shape
    (2, torch.Size([4, 3, 4, 4]))
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int,
        augment: str,
        order: Literal["class", "domain"] | None = None,
        part: slice | Tensor = slice(None),
        skip_bad: bool = False,
    ) -> None:
        self._dataset, self._size, self._seed = dataset, batch_size, seed
        self._part = slice(None) if part is None else part
        self._augment = augmentation(augment, dataset.images, seed)
        self._groups = None if order is None else _GROUPS[order](dataset)
        if self._groups is None:
            self._length = num_batches(len(dataset), batch_size)
        else:
            self._length = _num_grouped(self._groups, batch_size, str(order))
        self._skip_bad = skip_bad
        self._order, self._epoch = torch.empty(0), -1

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        epoch, number = place
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of an epoch of {len(self)} batches")
        if epoch != self._epoch:
            random = generator(self._seed, epoch, _ORDER)
            self._order = _order(random, self._groups, len(self._dataset), self._size)
            self._epoch = epoch
        first = number * self._size
        indices = self._order[first : first + self._size][self._part]
        try:
            return self._fetch(indices, epoch)
        except DataError:
            if not self._skip_bad:
                raise
        return _joined([self._readable(index, epoch) for index in indices.tolist()])

    def places(self, start: tuple[int, int], epochs: int) -> Iterator[tuple[int, int]]:
        """All (epoch, number) from `start` to the last batch of the last of `epochs`."""
        first, skip = start
        for epoch in range(first, epochs):
            for number in range(skip if epoch == first else 0, len(self)):
                yield epoch, number

    def _fetch(self, indices: Tensor, epoch: int) -> Batch:
        images, colour = self._augment(indices, epoch)
        return Batch(images, self._dataset.labels[indices], indices, colour)

    def _readable(self, index: int, epoch: int) -> Batch:
        """The image at an index, or the next of the set that can be read."""
        errors = []
        for step in range(min(_MOST_TRIES, len(self._dataset))):
            at = (index + step) % len(self._dataset)
            try:
                batch = self._fetch(torch.tensor([at]), epoch)
            except DataError as error:
                errors.append(str(error))
                continue
            skipped = (f"{errors[0]}; image {at} is in its place",) if errors else ()
            return batch._replace(skipped=skipped)
        raise DataError(f"{len(errors)} images in a row cannot be read; the first: {errors[0]}")


class InOrder:
    """The images of a set as they are, for torch's DataLoader: each place is a range of indices.

    Args:
        dataset: the images.
        skip_bad: leave out images that cannot be read, and say so.

    >>> images = Dataset(torch.zeros(5, 3, 4, 4, dtype=torch.uint8), torch.arange(5), tuple("ab"))
    >>> source = InOrder(images)
    >>> [source[place].indices.tolist() for place in source.places(2)]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(self, dataset: Dataset, *, skip_bad: bool = False) -> None:
        self._dataset, self._skip_bad = dataset, skip_bad

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        return fetch(self._dataset, torch.arange(*place), skip_bad=self._skip_bad)

    def places(self, batch_size: int) -> Iterator[tuple[int, int]]:
        """Ranges (first, last + 1) of at most batch_size images, all together the whole set."""
        for first in range(0, len(self._dataset), batch_size):
            yield first, min(first + batch_size, len(self._dataset))


def fetch(dataset: Dataset, indices: Tensor, *, skip_bad: bool = False) -> Batch:
    """The images at indices (B,), as they are.

    Args:
        skip_bad: leave out images that cannot be read, and say so in `skipped`.

    Raises:
        DataError: an image cannot be read.
    """
    try:
        return Batch(dataset.images[indices], dataset.labels[indices], indices)
    except DataError:
        if not skip_bad:
            raise
    found, skipped = [], []
    for index in indices.split(1):
        try:
            found.append(fetch(dataset, index))
        except DataError as error:
            skipped.append(f"{error}; left out")
    if not found:
        none = torch.empty((0, *dataset.images.shape[1:]), dtype=torch.uint8)
        return Batch(none, dataset.labels[:0], indices[:0], skipped=tuple(skipped))
    return _joined(found)._replace(skipped=tuple(skipped))


def _joined(batches: list[Batch]) -> Batch:
    images, labels, indices, colours, skipped = zip(*batches)
    return Batch(
        torch.cat(images),
        torch.cat(labels),
        torch.cat(indices),
        None if colours[0] is None else torch.cat(colours),
        tuple(sentence for sentences in skipped for sentence in sentences),
    )


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


def _order(random: np.random.Generator, groups: np.ndarray | None, num: int, size: int) -> Tensor:
    """The images of an epoch, batch after batch; each batch of one group if there are groups."""
    order = random.permutation(num)
    if groups is None:
        return torch.from_numpy(order)
    order = order[np.argsort(groups[order], kind="stable")]
    counts = np.bincount(groups)
    ends = np.cumsum(counts)
    whole = zip(ends - counts, ends - counts % size)
    batches = np.concatenate([order[first:last] for first, last in whole]).reshape(-1, size)
    return torch.from_numpy(batches[random.permutation(len(batches))].ravel())


def _num_grouped(groups: np.ndarray, size: int, order: str) -> int:
    counts = np.bincount(groups)
    if counts.max() < size:
        raise DataError(
            f'order "{order}": no {order} fills a batch of {size}, the largest has {counts.max()} '
            f"images; choose a batch_size of at most {counts.max()}"
        )
    return int((counts // size).sum())


def _domains(dataset: Dataset) -> np.ndarray:
    if dataset.domains is None:
        raise DataError('order "domain": these images have one domain; join sources by joined:A+B')
    return np.array(dataset.domains)[dataset.labels.numpy()]


# order: which images may be in a batch together
_GROUPS: dict[str, Callable[[Dataset], np.ndarray]] = {
    "class": lambda dataset: dataset.labels.numpy(),
    "domain": _domains,
}
