"""The operators `torch.ops.normlab.*`: schemas, shapes without data, gradients.

An operator says what is computed; which code computes it is torch's dispatcher's to choose by
device. Here `eager` is registered for all of them; a device with kernels of its own registers them
under its name and nothing above notices.

    moments             x -> mean, var
    normalize           x, weight, bias, residual -> y, mean, var, rstd
    normalize_backward  dy and what the forward saved -> dx, dweight, dbias, dresidual
    apply               x, mean, var, weight, bias, residual -> y

Patterns come with their sizes written in ("n (g=8 c) ... -> n g"), activations by name. Only y is
differentiable in `normalize`; `moments` and `apply` carry gradients through statistics.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from normlab import pattern as patterns
from normlab.ops import eager
from normlab.ops.eager import ACTIVATIONS, statistics_dtype

__all__ = ["ACTIVATIONS", "apply", "moments", "normalize", "statistics_dtype"]

_SCHEMAS = {
    "moments": "(Tensor x, str pattern, bool center) -> (Tensor, Tensor)",
    "normalize": "(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, str pattern, "
    "float eps, bool center, str activation) -> (Tensor, Tensor, Tensor, Tensor)",
    "normalize_backward": "(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, "
    "Tensor mean, Tensor rstd, str pattern, bool center, str activation) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    "apply": "(Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, Tensor? residual, "
    "str pattern, float eps, str activation) -> Tensor",
}

for _name, _schema in _SCHEMAS.items():
    torch.library.define(f"normlab::{_name}", _schema)
    torch.library.impl(f"normlab::{_name}", "CompositeExplicitAutograd", getattr(eager, _name))


def moments(x: Tensor, pattern: str, center: bool) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over what the pattern drops, shaped as what it keeps."""
    return _call("moments", x, pattern, center)


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    pattern: str,
    eps: float,
    center: bool,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, mean, var, rstd of y = activation((x - mean) * rstd * weight + bias + residual)."""
    return _call("normalize", x, weight, bias, residual, pattern, eps, center, activation)


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
    return _call("apply", x, mean, var, weight, bias, residual, pattern, eps, activation)


def _call(name: str, *args: Any) -> Any:
    """The operator; under function transforms and forward mode its definition in plain torch.

    torch derives vmap, jvp and their compositions of plain operations itself, and rightly, where a
    rule written for each would have to be trusted.
    """
    if not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    ):
        return getattr(eager, name)(*args)
    return getattr(torch.ops.normlab, name)(*args)


@torch.library.register_fake("normlab::moments")
def _(x: Tensor, pattern: str, center: bool) -> tuple[Tensor, Tensor]:
    return _statistic(x, pattern), _statistic(x, pattern)


@torch.library.register_fake("normlab::normalize")
def _(x: Tensor, weight: Any, bias: Any, residual: Any, pattern: str, *rest: Any) -> Any:
    return torch.empty_like(x), *(_statistic(x, pattern) for _ in range(3))


@torch.library.register_fake("normlab::normalize_backward")
def _(dy: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dweight, dbias = (x.new_empty(x.shape[1], dtype=statistics_dtype(x)) for _ in range(2))
    return torch.empty_like(x), dweight, dbias, torch.empty_like(x)


@torch.library.register_fake("normlab::apply")
def _(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)


def _statistic(x: Tensor, pattern: str) -> Tensor:
    shape = patterns.geometry(pattern, x.shape).statistics
    return x.new_empty(shape, dtype=statistics_dtype(x))


def _save_normalize(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, residual, *ctx.how = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.has_residual = residual is not None
    # without an activation the residual's value has no part in any gradient
    residual = residual if ctx.how[-1] != "none" else None
    ctx.save_for_backward(x, weight, bias, residual, output[1], output[3])


def _normalize_gradients(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 8
    x, weight, bias, residual, mean, rstd = ctx.saved_tensors
    pattern, _, center, activation = ctx.how
    if torch.is_grad_enabled():  # create_graph: what is returned must be differentiable itself
        gradients = _differentiate(
            lambda *tensors: eager.normalize(*tensors, *ctx.how)[:1],
            (x, weight, bias, residual),
            (dy,),
        )
        dresidual = gradients[3] if residual is not None else dy
    else:
        *gradients, dresidual = torch.ops.normlab.normalize_backward(
            dy, x, weight, bias, residual, mean, rstd, pattern, center, activation
        )
    typed = (_as(t, g) for t, g in zip((x, weight, bias), gradients))
    return *typed, dresidual if ctx.has_residual else None, None, None, None, None


torch.library.register_autograd(
    "normlab::normalize", _normalize_gradients, setup_context=_save_normalize
)


def _differentiate(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    output_gradients: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients of a function in plain torch by those inputs that need one."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # views, so that one tensor given for two inputs still gets two gradients
        views = [None if t is None else t.view_as(t) for t in inputs]
        outputs = zip(function(*views), output_gradients)
        reached = [(y, dy) for y, dy in outputs if dy is not None]
        wanted = [v for v in views if v is not None and v.requires_grad]
        found = iter(
            torch.autograd.grad(
                [y for y, _ in reached],
                wanted,
                [dy for _, dy in reached],
                create_graph=create_graph,
                allow_unused=True,
            )
            if reached and wanted
            else [None] * len(wanted)
        )
    return [next(found) if v is not None and v.requires_grad else None for v in views]


def _as(like: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    return None if like is None or gradient is None else gradient.to(like.dtype)


def _register_definition_gradients(name: str, num_tensors: int) -> None:
    """Gradients of an operator whose backward pass is seldom run: those of its definition."""

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.how = inputs[num_tensors:]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:num_tensors])

    def gradients(ctx: Any, *output_gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        def definition(*tensors: Tensor | None) -> Sequence[Tensor]:
            y = getattr(eager, name)(*tensors, *ctx.how)
            return (y,) if isinstance(y, Tensor) else y

        found = _differentiate(definition, ctx.saved_tensors, output_gradients)
        return *found, *(None for _ in ctx.how)

    torch.library.register_autograd(f"normlab::{name}", gradients, setup_context=save)


_register_definition_gradients("moments", 1)
_register_definition_gradients("apply", 6)
