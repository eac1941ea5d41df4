"""Norms of single samples that are more than one pattern, or none, in float64."""

from collections.abc import Callable

from definitions import finished
from torch import Tensor

from normlab.layer import Norm


def _none(layer: Norm, x: Tensor, residual: Tensor | None) -> Tensor:
    return finished(layer, x.double(), residual)


DEFINITIONS: dict[str, Callable[[Norm, Tensor, Tensor | None], Tensor]] = {
    "none": _none,
}
