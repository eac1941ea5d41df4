"""Images of several sources, each a domain with classes of its own: joined:mnist+fashion_mnist.

Classes are called after their source, "mnist 7", and all are told apart from each other. Batches
of one domain each are those of `order="domain"`; a norm with statistics for each domain is
"domain_batch:2".
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from normlab.lab import address as addresses
from normlab.lab.data.dataset import DataError, Dataset, Images


def load(what: str, split: str) -> Dataset | None:
    """The images of all sources one after the other; `what` is their addresses, with + between.

    Raises:
        DataError: fewer than two sources, one twice, images of different shapes, or a split that
            only some of them have.
    """
    sources = [source.strip() for source in what.split("+")]
    if len(sources) < 2 or not all(sources):
        raise DataError(f'"joined:{what}": name two sources or more: joined:mnist+fashion_mnist')
    twice = [source for source, times in Counter(sources).items() if times > 1]
    if twice:
        raise DataError(f'"joined:{what}": {twice[0]} is there twice; name each source once')
    parts = {source: _load(source, split) for source in sources}
    found = {source: part for source, part in parts.items() if part is not None}
    if not found:
        return None
    lacking = [source for source in sources if source not in found]
    if lacking:
        raise DataError(
            f'"joined:{what}": {", ".join(lacking)} has no {split} split, and '
            f"{', '.join(found)} has; join sources with the same splits"
        )
    return _joined(found)


def _load(source: str, split: str) -> Dataset | None:
    module, rest = addresses.resolve("data", source)
    dataset: Dataset | None = module.load(rest, split)
    return dataset


def _joined(parts: dict[str, Dataset]) -> Dataset:
    shapes = {source: tuple(part.images.shape[1:]) for source, part in parts.items()}
    if len(set(shapes.values())) > 1:
        sizes = ", ".join(f"{s} {'×'.join(map(str, shape))}" for s, shape in shapes.items())
        raise DataError(f"joined images must be of one shape, got {sizes}; choose others")
    labels: list[Tensor] = []
    classes: list[str] = []
    domains: list[int] = []
    for domain, (source, part) in enumerate(parts.items()):
        labels.append(part.labels + len(classes))
        classes += [f"{source} {name}" for name in part.classes]
        domains += [domain] * len(part.classes)
    return Dataset(
        _one_store([part.images for part in parts.values()]),
        torch.cat(labels),
        tuple(classes),
        domains=tuple(domains),
    )


def _one_store(stores: list[Any]) -> Images:
    if all(isinstance(store, Tensor) for store in stores):
        return torch.cat(stores)
    return _Stores(stores)


class _Stores:
    """Stores of images one after the other."""

    def __init__(self, stores: list[Images]) -> None:
        self._stores = stores
        counts = torch.tensor([store.shape[0] for store in stores])
        self._starts = counts.cumsum(0) - counts
        self.shape = torch.Size((int(counts.sum()), *stores[0].shape[1:]))

    def __getitem__(self, indices: Tensor) -> Tensor:
        found = torch.empty((len(indices), *self.shape[1:]), dtype=torch.uint8)
        which = torch.bucketize(indices, self._starts, right=True) - 1
        for number, store in enumerate(self._stores):
            at = (which == number).nonzero()[:, 0]
            if len(at):
                found[at] = store[indices[at] - self._starts[number]]
        return found
