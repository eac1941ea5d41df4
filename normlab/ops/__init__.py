"""The operators `torch.ops.normlab.*`: schemas, shapes without data, gradients.

An operator says what is computed; the device of x says by which code: `cpu` and `cuda` have
kernels, `eager` is the rest and what they fall back to.

    moments             x -> mean, var
    normalize           x, weight, bias, residual -> y, statistics
    normalize_backward  dy and what the forward saved -> dx, dweight, dbias, dresidual
    apply               x, mean, var, weight, bias, residual -> y
    apply_backward      dy and what apply got -> dx, dweight, dbias, dresidual

`statistics` is mean, var and rstd = 1/sqrt(var + eps) along its first axis, each shaped as what the
pattern keeps. Patterns come with their sizes written in ("n (g=8 c) ... -> n g"), activations by
name. Only y is differentiable in `normalize`; `moments` and `apply` carry gradients through
statistics. dresidual is empty where there is none, or no activation, so that it is dy itself.

Operators are for what looks at operators: compilers, export, fake and subclassed tensors, modes.
An ordinary call takes a shorter way to the same code, see `direct`.
"""

from typing import Any

import torch
from torch import Tensor

from normlab import pattern as patterns
from normlab.ops import device, direct, eager
from normlab.ops.eager import ACTIVATIONS, compute_dtype, statistics_dtype
from normlab.ops.gradients import differentiate, fitting, is_batch, of_normalize

__all__ = [
    "ACTIVATIONS",
    "apply",
    "compute_dtype",
    "moments",
    "normalize",
    "rebuild",
    "statistics_dtype",
    "track",
]

_GRADIENTS = "(Tensor, Tensor, Tensor, Tensor)"
_SCHEMAS = {
    "moments": "(Tensor x, str pattern, bool center) -> (Tensor, Tensor)",
    "normalize": "(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, str pattern, "
    "float eps, bool center, str activation) -> (Tensor, Tensor)",
    "normalize_backward": "(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, "
    f"Tensor statistics, str pattern, bool center, str activation) -> {_GRADIENTS}",
    "apply": "(Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, Tensor? residual, "
    "str pattern, float eps, str activation) -> Tensor",
    "apply_backward": "(Tensor dy, Tensor x, Tensor mean, Tensor var, Tensor? weight, "
    "Tensor? bias, Tensor? residual, str pattern, float eps, str activation) -> " + _GRADIENTS,
}

for _name, _schema in _SCHEMAS.items():
    torch.library.define(f"normlab::{_name}", _schema)
    torch.library.impl(f"normlab::{_name}", "CompositeExplicitAutograd", device.operator(_name))


def moments(x: Tensor, pattern: str, center: bool) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over what the pattern drops, shaped as what it keeps."""
    if _is_transformed():
        return eager.moments(x, pattern, center)
    return torch.ops.normlab.moments(x, pattern, center)


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
    """y = activation((x - mean) * rstd * weight + bias + residual), and its statistics."""
    if _is_transformed():
        return eager.normalize(x, weight, bias, residual, pattern, eps, center, activation)
    if not torch.compiler.is_compiling() and direct.is_ordinary(x, weight, bias, residual):
        return direct.normalize(x, weight, bias, residual, pattern, eps, center, activation)
    return torch.ops.normlab.normalize(x, weight, bias, residual, pattern, eps, center, activation)


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
    """y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual), statistics given."""
    if _is_transformed():
        return eager.apply(x, mean, var, weight, bias, residual, pattern, eps, activation)
    if not torch.compiler.is_compiling() and direct.is_ordinary(
        x, mean, var, weight, bias, residual
    ):
        return direct.apply(x, mean, var, weight, bias, residual, pattern, eps, activation)
    return torch.ops.normlab.apply(x, mean, var, weight, bias, residual, pattern, eps, activation)


def rebuild(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    statistics: Tensor,
    pattern: str,
    activation: str,
) -> Tensor:
    """y of `normalize` once more, bit for bit, from the statistics; without gradients."""
    with torch.no_grad():
        code = device.code_for(x.device.type)
        return code.rebuild(x, weight, bias, residual, statistics, pattern, activation)


def track(
    running_mean: Tensor,
    running_var: Tensor,
    statistics: Tensor,
    momentum: float | Tensor,
    unbiased: float,
) -> None:
    """Move running statistics (C,) towards those of a batch, (3, C), in place."""
    ordinary = (
        not torch.compiler.is_compiling()
        and isinstance(momentum, float)
        and direct.is_ordinary(running_mean, running_var)
    )
    code = device.code_for(running_mean.device.type) if ordinary else eager
    code.track(running_mean, running_var, statistics, momentum, unbiased)


def _is_transformed() -> bool:
    """Whether a function transform, forward mode or ONNX export is at work.

    The definition is called then: torch derives vmap, jvp and their compositions of plain
    operations itself, and rightly, where a rule written for each would have to be trusted; and
    plain operations are what ONNX has.
    """
    if torch.compiler.is_compiling():
        return torch.onnx.is_in_onnx_export()
    return (
        torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    )


@torch.library.register_fake("normlab::moments")
def _(x: Tensor, pattern: str, center: bool) -> tuple[Tensor, Tensor]:
    return _statistics(x, pattern), _statistics(x, pattern)


@torch.library.register_fake("normlab::normalize")
def _(x: Tensor, weight: Any, bias: Any, residual: Any, pattern: str, *rest: Any) -> Any:
    return torch.empty_like(x), _statistics(x, pattern, 3)


@torch.library.register_fake("normlab::normalize_backward")
def _(dy: Tensor, x: Tensor, weight: Any, bias: Any, residual: Any, *rest: Any) -> Any:
    return _gradients_like(x, residual, rest[-1])


@torch.library.register_fake("normlab::apply")
def _(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("normlab::apply_backward")
def _(dy: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _gradients_like(x, rest[4], rest[-1])


def _statistics(x: Tensor, pattern: str, *first: int) -> Tensor:
    shape = (*first, *patterns.geometry(pattern, x.shape).statistics)
    return x.new_empty(shape, dtype=statistics_dtype(x))


def _gradients_like(
    x: Tensor, residual: Tensor | None, activation: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dweight, dbias = (x.new_empty(x.shape[1], dtype=compute_dtype(x)) for _ in range(2))
    has_dresidual = residual is not None and activation != "none"
    return (
        torch.empty_like(x),
        dweight,
        dbias,
        torch.empty_like(x if has_dresidual else dweight[:0]),
    )


def _save_normalize(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, residual, *ctx.how = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    # without an activation the residual's value has no part in any gradient
    residual = residual if ctx.how[-1] != "none" else None
    ctx.save_for_backward(x, weight, bias, residual, output[1])


def _normalize_gradients(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 8
    backward = torch.ops.normlab.normalize_backward
    found = of_normalize(backward, dy, ctx.saved_tensors, ctx.how, ctx.needs_input_grad[3])
    return *found, None, None, None, None


def _save_apply(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, pattern, eps, activation = inputs
    ctx.how = pattern, eps, activation
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors[:5], tensors[5] if activation != "none" else None)


def _apply_gradients(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 9
    tensors, how = ctx.saved_tensors, ctx.how
    dmean = dvar = None
    if torch.is_grad_enabled() or ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        dx, dmean, dvar, *rest = differentiate(lambda *t: (eager.apply(*t, *how),), tensors, (dy,))
        found = (dx, *rest)
    else:
        found = torch.ops.normlab.apply_backward(dy, *tensors, *how)
    _, _, _, weight, bias, _ = tensors
    dx, *rest = fitting(found, dy, weight, bias, ctx.needs_input_grad[5], how[-1])
    return dx, dmean, dvar, *rest, None, None, None


def _save_moments(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, *ctx.how = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, output[0])


def _moments_gradients(
    ctx: Any, dmean: Tensor | None, dvar: Tensor | None
) -> tuple[Tensor | None, ...]:
    x, mean = ctx.saved_tensors
    if torch.is_grad_enabled() or any(is_batch(d) for d in (dmean, dvar) if d is not None):
        (dx,) = differentiate(lambda x: eager.moments(x, *ctx.how), [x], (dmean, dvar))
    else:
        dx = eager.moments_backward(dmean, dvar, x, mean, *ctx.how)
    return dx, None, None


for _name, _save, _rule in (
    ("normalize", _save_normalize, _normalize_gradients),
    ("apply", _save_apply, _apply_gradients),
    ("moments", _save_moments, _moments_gradients),
):
    torch.library.register_autograd(f"normlab::{_name}", _rule, setup_context=_save)
