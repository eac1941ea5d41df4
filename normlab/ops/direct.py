"""The way of an ordinary call: tensor to kernel, without the dispatcher.

An operator costs tens of microseconds in the dispatcher, which on a small tensor is more than the
arithmetic. Nothing is gained by it where nobody looks: no compiler, no tracer, no mode, no tensor
of a kind of its own. So this file is written for few steps.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from normlab.ops.device import code_for
from normlab.ops.gradients import of_normalize

ORDINARY = {Tensor, Parameter, type(None)}


def is_ordinary(*tensors: Tensor | None) -> bool:
    """Whether nobody but autograd takes an interest in a call with these tensors."""
    return (
        ORDINARY.issuperset(map(type, tensors))
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._len_torch_function_stack()
        and torch._C._get_tracing_state() is None
    )


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    pattern: str,
    eps: float,
    center: bool,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """y and its statistics, under autograd where one of the tensors needs a gradient."""
    if torch.is_grad_enabled() and _needs_gradient(x, weight, bias, residual):
        beside: list[Tensor] = []
        y = Normalize.apply(beside, x, weight, bias, residual, pattern, eps, center, activation)
        return y, beside[0]
    code = code_for(x.device.type)
    return code.normalize(x, weight, bias, residual, pattern, eps, center, activation)


def apply(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    pattern: str,
    eps: float,
    activation: str,
) -> Tensor:
    """y under statistics that are given; as an operator where gradients are wanted."""
    args = (x, mean, var, weight, bias, residual, pattern, eps, activation)
    if torch.is_grad_enabled() and _needs_gradient(x, mean, var, weight, bias, residual):
        return torch.ops.normlab.apply(*args)
    return code_for(x.device.type).apply(*args)


def _needs_gradient(*tensors: Tensor | None) -> bool:
    for t in tensors:  # noqa: SIM110 - any() takes three times as long
        if t is not None and t.requires_grad:
            return True
    return False


class Normalize(torch.autograd.Function):
    """y; the statistics are put into the list given first, as they have no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        beside: list[Tensor],
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        pattern: str,
        eps: float,
        center: bool,
        activation: str,
    ) -> Tensor:
        ctx.code = code_for(x.device.type)
        ctx.how = (pattern, eps, center, activation)
        y, statistics = ctx.code.normalize(
            x, weight, bias, residual, pattern, eps, center, activation
        )
        beside.append(statistics)
        # without an activation the residual's value has no part in any gradient
        needed = residual if activation != "none" else None
        ctx.save_for_backward(x, weight, bias, needed, statistics)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        found = of_normalize(
            ctx.code.normalize_backward, dy, ctx.saved_tensors, ctx.how, ctx.needs_input_grad[4]
        )
        return None, *found, None, None, None, None
