"""How tensors lie in memory: dense, with axis 1 in its place or last."""

import torch
from torch import Tensor


def is_dense(x: Tensor, channels_last: bool) -> bool:
    """Whether memory is contiguous, with axis 1 in its place or last."""
    if not channels_last:
        return x.is_contiguous()
    if x.dim() == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    if x.dim() == 5:
        return x.is_contiguous(memory_format=torch.channels_last_3d)
    return x.movedim(1, -1).is_contiguous()


def lies_channels_last(x: Tensor) -> bool:
    """Whether torch lays out results of x with axis 1 last; x may have gaps."""
    if x.is_contiguous():
        return False
    if is_dense(x, True):
        return True
    like = torch.empty_like(x, device="meta")
    return not like.is_contiguous() and is_dense(like, True)


def dense(x: Tensor, channels_last: bool) -> Tensor:
    """x in contiguous memory with axis 1 in its place or last; itself if it is."""
    if is_dense(x, channels_last):
        return x
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x.contiguous()


def as_of(x: Tensor, values: Tensor) -> Tensor:
    """Values in the strides torch gives to results of x."""
    if values.stride() == torch.empty_like(x, device="meta").stride():
        return values
    return torch.empty_like(x).copy_(values)
