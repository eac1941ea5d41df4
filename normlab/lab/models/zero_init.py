"""Residual blocks that start as identities: the weight of their last norm is 0.

Source: Goyal et al. 2017, https://arxiv.org/abs/1706.02677, section 5.1.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_LAST = {"BasicBlock": "bn2", "Bottleneck": "bn3"}  # of torchvision's blocks


def zero_last_norms(model: nn.Module) -> int:
    """Start the last batch norm of every residual block at weight 0; return how many there are.

    Blocks are those of torchvision's ResNets, and of timm those that say which norm it is: their
    `zero_init_last`. Where that means a convolution, as before an activation, the block is left.
    """
    norms = [m for block in model.modules() for m in _last_norms(block)]
    for layer in norms:
        nn.init.zeros_(layer.weight)
    return len(norms)


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
