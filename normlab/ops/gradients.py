"""What backward passes share: gradients of a definition, and each in its input's type."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


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
