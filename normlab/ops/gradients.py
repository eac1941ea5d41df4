"""What backward passes share: gradients of a definition, and each in its input's type."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor

from normlab.ops import eager


def differentiate(
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
        reached = [(y, dy) for y, dy in outputs if dy is not None and y.requires_grad]
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


def of_normalize(
    backward: Callable[..., Sequence[Tensor | None]],
    dy: Tensor,
    saved: Sequence[Any],
    how: Sequence[Any],
    wants_dresidual: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of `normalize` by x, weight, bias and residual as autograd takes them.

    Args:
        backward: `normalize_backward`, taken where nobody differentiates what it returns.
        saved: x, weight, bias, residual and statistics.
        how: pattern, eps, center and activation.
    """
    x, weight, bias, residual, statistics = saved
    pattern, _, center, activation = how
    # create_graph: what is returned must be differentiable itself
    if torch.is_grad_enabled() or is_batch(dy):
        found: Sequence[Tensor | None] = differentiate(
            lambda *t: eager.normalize(*t, *how)[:1], (x, weight, bias, residual), (dy,)
        )
    else:
        found = backward(dy, x, weight, bias, residual, statistics, pattern, center, activation)
    return fitting(found, dy, weight, bias, wants_dresidual, activation)


def is_batch(dy: Tensor) -> bool:
    """Whether dy stands for several, as in is_grads_batched=True; such a tensor has no memory."""
    return is_legacy_batchedtensor(dy) or is_functorch_wrapped_tensor(dy)


def fitting(
    found: Sequence[Tensor | None],
    dy: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    wants_dresidual: bool,
    activation: str,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients by x, weight, bias and residual as autograd takes them.

    Args:
        found: as `normalize_backward` returns them, or None for those not wanted.
    """
    dx, dweight, dbias, dresidual = found
    if activation == "none":
        dresidual = dy
    if dweight is not None:
        dweight = None if weight is None else _typed(dweight, weight)
    if dbias is not None:
        dbias = None if bias is None else _typed(dbias, bias)
    return dx, dweight, dbias, dresidual if wants_dresidual else None


def _typed(gradient: Tensor, parameter: Tensor) -> Tensor:
    return gradient if gradient.dtype == parameter.dtype else gradient.to(parameter.dtype)
