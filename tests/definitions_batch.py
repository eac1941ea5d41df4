"""Norms that use the batch and are more than one pattern, in float64."""

from collections.abc import Callable

from definitions import finished, running, used_pattern
from torch import Tensor

from normlab import reference
from normlab.layer import Norm


def _batch_instance(layer: Norm, x: Tensor, residual: Tensor | None) -> Tensor:
    batch = reference.normalize(x, used_pattern(layer), eps=layer.eps, statistics=running(layer))
    instance = reference.normalize(x, "n c ... -> n c", eps=layer.eps)
    gate = layer.gate.double().reshape(-1, *[1] * (x.dim() - 2))
    return finished(layer, gate * batch + (1 - gate) * instance, residual)


DEFINITIONS: dict[str, Callable[[Norm, Tensor, Tensor | None], Tensor]] = {
    "batch_instance": _batch_instance,
}
