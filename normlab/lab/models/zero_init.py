"""Residual blocks that start as identities: their last norm, or without it convolution, gives 0.

Source: Goyal et al. 2017, https://arxiv.org/abs/1706.02677, section 5.1.
"""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

# what a convolution is 0 with: weight norm, scaled standardization, none of them
_SCALES = ("parametrizations.weight.original0", "parametrizations.weight.0.gain", "weight")
_LAST = {"BasicBlock": "bn2", "Bottleneck": "bn3"}  # of torchvision's blocks


def last_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The last batch norm of every residual block, by name.

    Blocks are those of torchvision's ResNets, and of timm those that say which norm it is: their
    `zero_init_last`. Where that means a convolution, as before an activation, the block is left.
    """
    found = {id(m) for block in model.modules() for m in _last_norms(block)}
    return {
        name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm) and id(m) in found
    }


def zero_convolutions(model: nn.Module, places: Iterable[str]) -> list[str]:
    """Start the convolution before each place of a norm at 0; return places where none can.

    Of weight norm that is the length of its filters, of scaled standardization the gain. So do
    blocks without norms start as identities: Zhang et al. 2019, https://arxiv.org/abs/1901.09321.
    """
    left = []
    for place in places:
        parent, _, own = place.rpartition(".")
        names, layers = zip(*model.get_submodule(parent).named_children())
        at = names.index(own)
        conv = layers[at - 1] if at else None
        found = dict(conv.named_parameters()) if isinstance(conv, _ConvNd) else {}
        scale = next((found[name] for name in _SCALES if name in found), None)
        if scale is None:
            left.append(place)
        else:
            nn.init.zeros_(scale)
    return left


def _last_norms(block: nn.Module) -> list[_BatchNorm]:
    if type(block).__module__ == "torchvision.models.resnet" and type(block).__name__ in _LAST:
        return [block.get_submodule(_LAST[type(block).__name__])]  # type: ignore[list-item]
    zero = getattr(block, "zero_init_last", None)
    if not callable(zero):
        return []
    parameters = list(block.parameters())
    before = [p._version for p in parameters]  # counts writes, of tensors without memory too
    with _kept(parameters):
        zero()
        written = {id(p) for p, version in zip(parameters, before) if p._version != version}
    return [m for m in block.modules() if isinstance(m, _BatchNorm) and id(m.weight) in written]


@contextlib.contextmanager
def _kept(parameters: list[nn.Parameter]) -> Iterator[None]:
    """After, parameters have the values from before."""
    before = [p.detach().clone() for p in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before):
                parameter.copy_(value)
