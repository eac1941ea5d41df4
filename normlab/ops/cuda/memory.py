"""Tensors as kernels read them: dense, and of a type they know."""

import torch
from torch import Tensor

from normlab.ops import layout

TYPES = (torch.float32, torch.bfloat16, torch.float16)


def along(x: Tensor, t: Tensor | None) -> Tensor | None:
    """A tensor that goes along with dense x, in its layout."""
    if t is None:
        return None
    return layout.dense(t if t.dtype in TYPES else t.to(x.dtype), not x.is_contiguous())


def parameters(weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    return None if weight is None else plain(weight), None if bias is None else plain(bias)


def plain(t: Tensor) -> Tensor:
    """Weight, bias or a statistic as kernels read it."""
    return (t if t.dtype in TYPES else t.to(torch.float32)).contiguous()
