"""Batch norms that vanish into the convolution before them, for inference.

In evaluation a batch norm multiplies each channel by a number and adds one; so may the convolution.
"""

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normlab import norms
from normlab.layer import Norm
from normlab.surgery.agreement import check_outputs
from normlab.surgery.batches import bare
from normlab.surgery.chain import is_ours
from normlab.surgery.graph import blocks, has_hooks, module_of, twin_of
from normlab.surgery.layers import SurgeryError, put, show_leaves, sites

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BEFORE = (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)  # exact types: others may do more
_FROZEN = "torchvision.ops.misc.FrozenBatchNorm2d"  # by name, so that nothing is imported


@dataclass(frozen=True)
class Folding:
    """What `fold` does to a model: a table when printed.

    Args:
        into: the layer each norm vanishes into, both by name.
        left: why other norms stay.
    """

    into: dict[str, str]
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{norm} → {layer}" for norm, layer in self.into.items()]
        lines += [f"{norm} stays: {reason}" for norm, reason in self.left.items()]
        return "\n".join([*lines, f"{len(self.into)} folded, {len(self.left)} left"])


def fold(model: nn.Module, sample_input: Any) -> nn.Module:
    """A copy of a network for inference, with batch norms folded into what comes before them.

    weight' = weight · s,   bias' = (bias - running_mean) · s + norm.bias,
    s = norm.weight / sqrt(running_var + eps), in float64

    A norm's place is taken by torch.nn.Identity, or its activation if it has one. `model` is
    unchanged, and is what to train. `print(foldable(model, sample_input))` tells what stays.

    Args:
        model: in evaluation mode.
        sample_input: what it is called with; a tuple is its arguments. Outputs for it are compared,
            to 1e-5 of the largest.

    Raises:
        SurgeryError: a model in training, nothing to fold, or outputs that differ.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    >>> x = torch.randn(2, 3, 8, 8)
    >>> torch.allclose(fold(model, x)(x), model(x), atol=1e-5)
    True
    """
    inner = bare(model, "fold")
    folding = foldable(inner, sample_input)
    if not folding.into:
        raise SurgeryError(f"0 batch norms can be folded; the model has {show_leaves(inner)}")
    after = copy.deepcopy(inner)
    every_name = {site.names[0]: site.names for site in sites(after, lambda _: True)}
    for name, before in folding.into.items():
        norm = after.get_submodule(name)
        _absorb(after.get_submodule(before), *_affine(norm))
        after = put(after, every_name[name], _remains(norm))
    check_outputs(inner, after, sample_input)
    return after


def foldable(model: nn.Module, sample_input: Any) -> Folding:
    """What `fold` would do; changes nothing.

    Raises:
        SurgeryError: a model in training, or one that does not run on the input.

    >>> model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    >>> print(foldable(model, torch.randn(2, 3, 8, 8)))
    2 → 1
    0 stays: follows its block's input
    1 folded, 1 left
    """
    inner = bare(model, "fold")
    if inner.training:
        raise SurgeryError("the model is in training, where batch norms are no constants; eval()")
    twin, sample = twin_of(inner, sample_input)
    names = {id(site.layer): site.names[0] for site in sites(twin, lambda _: True)}
    seen = blocks(twin, sample, lambda m: any(True for _ in m.children()), (False,))
    steps: dict[int, list[tuple[nn.Module, fx.Node]]] = {}
    for block in seen:
        module = twin.get_submodule(block.name)
        for node in block.graphs[False].nodes if block.graphs else ():
            if node.op == "call_module":
                called = module.get_submodule(str(node.target))
                steps.setdefault(id(called), []).append((module, node))
    calls = Counter({layer: len(places) for layer, places in steps.items()})
    into, left = {}, {}
    for site in sites(inner, _is_batch_norm):
        if site.layer.training:
            left[site.names[0]] = "is in training"
            continue
        norm = twin.get_submodule(site.names[0])
        reason, before = _layer_before(norm, steps.get(id(norm), []), calls)
        if before is None:
            left[site.names[0]] = reason
        else:
            into[site.names[0]] = names[id(before)]
    return Folding(into, left)


def _layer_before(
    norm: Any, places: list[tuple[nn.Module, fx.Node]], calls: Counter[int]
) -> tuple[str, nn.Module | None]:
    """What a norm can vanish into, or why it cannot."""
    if len(places) != 1:
        return (f"runs {len(places)} times" if places else "is not found in any graph"), None
    block, node = places[0]
    if has_hooks(norm):
        return "has hooks", None
    if getattr(norm, "running_mean", None) is None:
        return "has no running statistics", None
    if module_of(block, node) is None:
        return "gets a residual, or arguments by name", None
    x = node.args[0]
    if isinstance(x, fx.Node) and x.op == "placeholder":
        return "follows its block's input", None
    before = module_of(block, x)
    if before is None or type(before) not in _BEFORE:
        return (
            f"follows {getattr(x, 'target', x) if before is None else type(before).__name__}",
            None,
        )
    kind = type(before).__name__
    assert isinstance(x, fx.Node)
    if len(x.users) != 1 or calls[id(before)] != 1:
        return f"the {kind} before it is used elsewhere too", None
    if has_hooks(before):
        return f"the {kind} before it has hooks", None
    if type(before) is nn.Linear and len(x.meta["shape"]) != 2:
        return "the Linear before it puts channels last", None
    return "", before


def _is_batch_norm(layer: Any) -> bool:
    """Whether a layer in evaluation is a multiplication and an addition per channel."""
    if isinstance(layer, _BatchNorm):
        return type(layer).forward is _BatchNorm.forward or is_ours(layer)
    if isinstance(layer, Norm):
        plain = type(layer).forward in (Norm.forward, norms.TorchBatchNorm.forward)
        return plain and layer.track_running_stats
    return f"{type(layer).__module__}.{type(layer).__qualname__}" == _FROZEN


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """What a batch norm multiplies by and adds, (C,) and float64."""
    mean, var = norm.running_mean.double(), norm.running_var.double()
    scale = 1 / torch.sqrt(var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight.double()
    shift = -mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def _absorb(layer: Any, scale: Tensor, shift: Tensor) -> None:
    """Multiply a layer's output channels, then add to them."""
    weight = layer.weight
    per_output = scale.reshape(-1, *[1] * (weight.dim() - 1))  # (o, i / groups, ...)
    if type(layer) in _TRANSPOSED:  # (i, o / groups, ...), where i is split into groups
        split = scale.reshape(layer.groups, 1, -1)
        spread = split.expand(-1, weight.shape[0] // layer.groups, -1)
        per_output = spread.reshape(*weight.shape[:2], *[1] * (weight.dim() - 2))
    bias = shift if layer.bias is None else layer.bias.double() * scale + shift
    for name, value in (("weight", weight.double() * per_output), ("bias", bias)):
        value = value.detach().to(weight.dtype)
        setattr(layer, name, nn.Parameter(value, requires_grad=weight.requires_grad))


def _remains(norm: Any) -> nn.Module:
    """What a folded norm still does: its activation, or nothing."""
    activation = getattr(norm, "activation", None)
    if activation is None:
        return nn.Identity()
    return norms.NoNorm(len(norm.running_mean), activation=activation).eval()
