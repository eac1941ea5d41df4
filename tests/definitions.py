"""Norms in float64, as their equations say, executed literally: those that are one pattern.

A norm that is composed of several patterns has a row in a file of its family: definitions_batch,
definitions_sample.
"""

from torch import Tensor

from normlab import reference
from normlab.functional import PER_CHANNEL
from normlab.layer import Norm


def one_pattern(layer: Norm, x: Tensor, residual: Tensor | None) -> Tensor:
    return reference.normalize(
        x, used_pattern(layer), layer.weight, layer.bias, eps=layer.eps, center=layer.center,
        activation=layer.activation, residual=residual, statistics=running(layer),
    )  # fmt: skip


def running(layer: Norm) -> tuple[Tensor, Tensor] | None:
    """The running statistics, where the layer uses them."""
    if layer.training or not layer.track_running_stats:
        return None
    return layer.running_mean, layer.running_var


def used_pattern(layer: Norm) -> str:
    return layer.pattern if running(layer) is None else PER_CHANNEL


def finished(layer: Norm, y: Tensor, residual: Tensor | None, *, affine: bool = True) -> Tensor:
    """activation(y * weight + bias + residual), in float64."""
    shape = (-1,) + (1,) * (y.dim() - 2)
    if affine and layer.weight is not None:
        y = y * layer.weight.double().reshape(shape)
    if affine and layer.bias is not None:
        y = y + layer.bias.double().reshape(shape)
    return reference.ACTIVATIONS[layer.activation or "none"](
        y if residual is None else y + residual.double()
    )
