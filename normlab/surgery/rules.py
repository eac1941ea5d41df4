"""What the norms of other libraries are: one table, by the name of the exact class.

Exact classes, as a subclass may do more in its forward than normalize; by name, as nothing heavy is
to be imported for it. A norm without a row here is left as it is, and named.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from normlab import pattern as patterns
from normlab.functional import PER_CHANNEL
from normlab.layer import CATALOGUE, Norm
from normlab.norms import FrozenBatchNorm, TorchBatchNorm
from normlab.pattern import PatternError
from normlab.surgery.freeze import is_frozen
from normlab.surgery.shrunk import Shrunk

PER_POSITION = "n c ... -> n ..."
NO_RULE = "no rule for"


@dataclass(frozen=True)
class Reading:
    """What is read of a norm; weight, bias and running statistics have the same names everywhere.

    Args:
        core: the layer that has them.
        pattern: over which axes it normalizes, sizes written in.
        num_channels: C.
        activation: of our names; applied after the norm.
        then: what the layer does after its norm that has no name, in order.
    """

    core: Any
    pattern: str
    num_channels: int
    activation: str | None = None
    then: tuple[nn.Module, ...] = ()

    @property
    def eps(self) -> float:
        return self.core.eps

    @property
    def momentum(self) -> float | None:
        return getattr(self.core, "momentum", 0.1)

    @property
    def strength(self) -> float | None:
        return self.core.strength if isinstance(self.core, Shrunk) else None

    def tensor(self, name: str) -> Tensor | None:
        """weight, bias, running_mean, …; None where there is none."""
        return getattr(self.core, name, None)


class Followed(nn.Sequential):
    """A norm, and what came after it in the layer it replaces: y = then(norm(x)).

    Keys of its state_dict begin with 0 for the norm, 1 for what follows.
    """


def read(layer: nn.Module) -> Reading | None:
    """What a norm is, or None if it has no row."""
    if isinstance(layer, Followed):
        inner = read(layer[0])
        assert inner is not None
        return Reading(
            inner.core, inner.pattern, inner.num_channels, inner.activation, tuple(layer)[1:]
        )
    reader = RULES.get(qualified(layer))
    if reader is not None:
        return reader(layer)
    if isinstance(layer, Shrunk) or kind(layer) in CATALOGUE.values():
        return _ours(layer)
    return None


def reason_to_leave(layer: nn.Module) -> str | None:
    """Why a layer that is a norm, or is called one, has no row; None if it is no norm at all."""
    name = qualified(layer)
    if name in LEFT:
        return LEFT[name]
    own = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
    is_block = any(True for child in layer.children() for _ in child.parameters())
    is_called_norm = own and not is_block and re.search(r"Norm|Abn$", kind(layer).__name__)
    if isinstance(layer, _TORCH_NORMS) or is_called_norm:
        return f"{NO_RULE} {name}, which may do more than normalize"
    return None


def is_plain(layer: nn.Module) -> bool:
    """Whether a norm divides by the statistics of its pattern, and does nothing else."""
    own = kind(layer)
    if not issubclass(own, Norm):
        return True
    return own.forward in (Norm.forward, TorchBatchNorm.forward)


def is_one_pattern(layer: nn.Module) -> bool:
    """Whether a norm is plain, and subtracts the mean: no more than mean and variance is known."""
    return is_plain(layer) and centers(layer)


def evaluates_as_pattern(layer: Any) -> bool:
    """Whether a norm in evaluation computes what its pattern says, whatever it does in training."""
    if is_plain(layer):
        return True
    return layer.name in _ALIKE and _ALIKE[layer.name](layer)


def synchronizes(layer: Any) -> bool:
    """Whether a norm shares statistics with other processes."""
    return isinstance(layer, nn.SyncBatchNorm) or getattr(layer, "synchronize", False)


def is_as_still(layer: Any, new: Norm) -> bool:
    """Whether a layer moves its running statistics as little as the new one."""
    is_frozen_class = "FrozenBatchNorm" in kind(layer).__name__
    return is_frozen_class or not isinstance(new, FrozenBatchNorm)


def centers(layer: Any) -> bool:
    """Whether a norm subtracts the mean."""
    return getattr(layer, "center", True)


# norms with a forward of their own, and when they evaluate as their pattern
_ALIKE: dict[str, Callable[[Any], bool]] = {
    "ghost_batch": lambda layer: True,
    "batch_renorm": lambda layer: True,
    "batch_instance": lambda layer: layer.gate.is_meta or bool((layer.gate == 1).all()),
    "domain_batch": lambda layer: len(layer.domains) == 1,
}


def same_statistics(one: str, other: str, num_channels: int) -> bool:
    """Whether two patterns average over the same values of every input."""
    shape = (4, num_channels, 3, 5)
    try:
        return patterns.geometry(one, shape).runs == patterns.geometry(other, shape).runs
    except PatternError:
        return one == other


def kind(layer: nn.Module) -> type[nn.Module]:
    """The class of a layer, as it was before `freeze` or a parametrization."""
    changed = is_frozen(layer) or hasattr(layer, "parametrizations")
    return type(layer).__mro__[2 if is_frozen(layer) else 1] if changed else type(layer)


def qualified(layer: nn.Module) -> str:
    """Module and name of a layer's class."""
    return f"{kind(layer).__module__}.{kind(layer).__qualname__}"


def _batch(layer: Any) -> Reading:
    return Reading(layer, PER_CHANNEL, layer.num_features, *_after(layer))


def _frozen(layer: Any) -> Reading:
    return Reading(layer, PER_CHANNEL, len(layer.running_mean), *_after(layer))


def _instance(layer: Any) -> Reading:
    return Reading(layer, "n c ... -> n c", layer.num_features, *_after(layer))


def _group(layer: Any) -> Reading:
    pattern = f"n (g={layer.num_groups} c) ... -> n g"
    return Reading(layer, pattern, layer.num_channels, *_after(layer))


def _positions(layer: Any) -> Reading:
    return Reading(layer, PER_POSITION, layer.normalized_shape[0], *_after(layer))


def _ours(layer: Any) -> Reading:
    return Reading(layer, layer.pattern, layer.num_channels, layer.activation)


def _after(layer: Any) -> tuple[str | None, tuple[nn.Module, ...]]:
    """A name for what follows the norm inside the layer, and what has none."""
    if name := getattr(layer, "activation", None):  # ours
        return name, ()
    inside = (getattr(layer, name, None) for name in ("drop", "act"))
    after = tuple(m for m in inside if isinstance(m, nn.Module) and type(m) is not nn.Identity)
    if len(after) == 1 and (name := activation_of(after[0])):
        return name, ()
    return None, after


def activation_of(module: nn.Module) -> str | None:
    """Our name for an activation, unless it is another function or somebody watches it."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return None
    row = _ACTIVATIONS.get(qualified(module))
    return row(module) if callable(row) else row


_TORCH_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
    Norm,
)

RULES: dict[str, Callable[[Any], Reading]] = {
    **{f"torch.nn.modules.batchnorm.BatchNorm{d}d": _batch for d in (1, 2, 3)},
    "torch.nn.modules.batchnorm.SyncBatchNorm": _batch,
    **{f"torch.nn.modules.instancenorm.InstanceNorm{d}d": _instance for d in (1, 2, 3)},
    "torch.nn.modules.normalization.GroupNorm": _group,
    **{f"normlab.nn.BatchNorm{d}d": _batch for d in (1, 2, 3)},
    "normlab.nn.SyncBatchNorm": _batch,
    **{f"normlab.nn.InstanceNorm{d}d": _instance for d in (1, 2, 3)},
    "normlab.nn.GroupNorm": _group,
    "torchvision.ops.misc.FrozenBatchNorm2d": _frozen,
    "torchvision.models.convnext.LayerNorm2d": _positions,
    "timm.layers.norm_act.BatchNormAct2d": _batch,
    "timm.layers.norm_act.SyncBatchNormAct": _batch,
    "timm.layers.norm_act.FrozenBatchNormAct2d": _frozen,
    "timm.layers.norm_act.GroupNormAct": _group,
    "timm.layers.norm_act.GroupNorm1Act": _group,
    "timm.layers.norm_act.LayerNormAct2d": _positions,
    "timm.layers.norm_act.LayerNormAct2dFp32": _positions,
    "timm.layers.norm.GroupNorm": _group,
    "timm.layers.norm.GroupNorm1": _group,
    "timm.layers.norm.LayerNorm2d": _positions,
    "timm.layers.norm.LayerNorm2dFp32": _positions,
    "timm.layers.norm.LayerNormExp2d": _positions,
    "timm.models.metaformer.GroupNorm1NoBias": _group,
    "timm.models.metaformer.LayerNorm2dNoBias": _positions,
    "segmentation_models_pytorch.decoders.upernet.decoder.LayerNorm2d": _positions,
}

_LAST = "normalizes over the last axes, not over channels"
_ROOT = "a root mean square: there is no mean to match"

LEFT = {
    "torch.nn.modules.normalization.LayerNorm": _LAST,
    "torch.nn.modules.normalization.RMSNorm": _LAST,
    "normlab.nn.LayerNorm": _LAST,
    "normlab.nn.RMSNorm": _LAST,
    "timm.layers.norm.LayerNorm": _LAST,
    "timm.layers.norm.LayerNormFp32": _LAST,
    "timm.layers.norm.RmsNorm": _LAST,
    "timm.layers.norm.RmsNormFp32": _LAST,
    "timm.layers.norm.RmsNorm2d": _ROOT,
    "timm.layers.norm.RmsNorm2dFp32": _ROOT,
    "timm.layers.norm_act.LayerNormAct": _LAST,
    "timm.layers.norm_act.LayerNormActFp32": _LAST,
    "timm.layers.norm_act.RmsNormAct": _LAST,
    "timm.layers.norm_act.RmsNormAct2d": _ROOT,
    "timm.models.metaformer.LayerNormNoBias": _LAST,
    "segmentation_models_pytorch.encoders.mix_transformer.LayerNorm": _LAST,
    "torch.nn.modules.normalization.LocalResponseNorm": "it has no statistics of its own",
}

_TORCH = "torch.nn.modules.activation."
_ACTIVATIONS: dict[str, str | Callable[[Any], str | None]] = {
    _TORCH + "ReLU": "relu",
    _TORCH + "SiLU": "silu",
    _TORCH + "Hardswish": "hardswish",
    _TORCH + "Sigmoid": "sigmoid",
    _TORCH + "Tanh": "tanh",
    _TORCH + "GELU": lambda act: {"none": "gelu", "tanh": "gelu_tanh"}[act.approximate],
    _TORCH + "LeakyReLU": lambda act: "leaky_relu" if act.negative_slope == 0.01 else None,
    "timm.layers.activations.Swish": "silu",
    "timm.layers.activations.HardSwish": "hardswish",
    "timm.layers.activations.Sigmoid": "sigmoid",
    "timm.layers.activations.Tanh": "tanh",
    "timm.layers.activations.GELU": "gelu",
    "timm.layers.activations.GELUTanh": "gelu_tanh",
    "timm.layers.activations_me.SwishMe": "silu",
    "timm.layers.activations_me.HardSwishMe": "hardswish",
}
