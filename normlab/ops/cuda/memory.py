"""Tensors as kernels read them: dense, channels first or last, of a type they know."""

import torch
from torch import Tensor

TYPES = (torch.float32, torch.bfloat16, torch.float16)


def channels_last(x: Tensor) -> bool:
    """Whether torch lays out results of x so."""
    if x.is_contiguous():
        return False
    if not is_dense(x, True):
        x = torch.empty_like(x, device="meta")
    return not x.is_contiguous() and is_dense(x, True)


def is_dense(x: Tensor, channels_last: bool) -> bool:
    return (x.movedim(1, -1) if channels_last else x).is_contiguous()


def dense(x: Tensor, channels_last: bool) -> Tensor:
    """x without gaps."""
    if is_dense(x, channels_last):
        return x
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x.contiguous()


def along(x: Tensor, t: Tensor | None) -> Tensor | None:
    """A tensor that goes along with dense x, in its layout."""
    if t is None:
        return None
    return dense(t if t.dtype in TYPES else t.to(x.dtype), not x.is_contiguous())


def parameters(weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    return None if weight is None else plain(weight), None if bias is None else plain(bias)


def plain(t: Tensor) -> Tensor:
    """Weight, bias or a statistic as kernels read it."""
    return (t if t.dtype in TYPES else t.to(torch.float32)).contiguous()


def as_of(x: Tensor, copy: Tensor, values: Tensor) -> Tensor:
    """Values laid out as a dense copy of x, in the strides torch gives to results of x."""
    return values if copy is x else torch.empty_like(x).copy_(values)
