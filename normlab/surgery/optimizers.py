"""Optimizers made before a conversion: parameters replaced in place, with what they remember."""

import warnings
from collections.abc import Iterable

from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

from normlab.surgery.layers import SurgeryError


class SurgeryWarning(UserWarning):
    """A conversion was made that needs a second look."""


def check_optimizer(optimizer: Optimizer) -> None:
    """Raise unless parameters can be replaced in it."""
    if not isinstance(optimizer, Optimizer):
        raise SurgeryError(
            f"optimizer is a torch.optim.Optimizer, got a {type(optimizer).__name__}"
        )


def remap(
    optimizer: Optimizer,
    replaced: Iterable[tuple[Parameter, Parameter | None]],
    added: Iterable[tuple[Parameter, Parameter]],
    model: nn.Module,
) -> str:
    """Let an optimizer train the new parameters in place of the old, and say how many.

    State (momentum, averages) is carried over where shapes are equal. Nothing else of the groups
    changes.

    Args:
        replaced: pairs of old and new; None where there is no new one.
        added: a new parameter, and an old one whose group it joins.
        model: warns if the optimizer holds parameters that are not among this model's.
    """
    exchange = {id(old): new for old, new in replaced if old is not new}
    joining: dict[int, list[Parameter]] = {}
    for parameter, beside in added:
        joining.setdefault(id(beside), []).append(parameter)
    moved = dropped = 0
    for group in optimizer.param_groups:
        kept: list[Parameter] = []
        for old in group["params"]:
            new = exchange.get(id(old), old)
            kept += [] if new is None else [new]
            kept += joining.get(id(old), [])
            if new is old:
                continue
            moved, dropped = moved + (new is not None), dropped + (new is None)
            state = optimizer.state.pop(old, None)
            if new is not None and state is not None and new.shape == old.shape:
                optimizer.state[new] = state
        group["params"][:] = kept
    own = {id(p) for p in model.parameters()}
    dead = sum(id(p) not in own for group in optimizer.param_groups for p in group["params"])
    if dead:
        warnings.warn(
            f"the optimizer holds {dead} parameters that are not in the model, so that it trains "
            "them in vain; was it made for this model?",
            SurgeryWarning,
            stacklevel=4,
        )
    return f"optimizer: {moved} parameters replaced, {dropped} dropped, {dead} not in the model"
