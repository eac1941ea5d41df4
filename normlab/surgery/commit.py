"""A plan carried out: all layers or none, with their hooks, and the optimizer's parameters."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from normlab.surgery.layers import SurgeryError, put
from normlab.surgery.optimizers import check_optimizer, remap
from normlab.surgery.rules import read
from normlab.surgery.sample import Agreement, compare, run_sample

if TYPE_CHECKING:
    from normlab.surgery.plan import Change, Plan

_HOOKS = (
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


@dataclass
class Report:
    """What a conversion changed.

    Args:
        model: the converted one; the same object, unless the model itself was a norm.
        plan: the changes, with the old layers and their running statistics.
        agreement: of the outputs for the sample input, in evaluation; None without one.
        optimizer: what became of its parameters, in words.
    """

    model: nn.Module
    plan: "Plan"
    agreement: Agreement | None = None
    optimizer: str | None = None

    def __str__(self) -> str:
        lines = [str(self.plan)]
        lines += [] if self.agreement is None else [str(self.agreement)]
        lines += [] if self.optimizer is None else [self.optimizer]
        return "\n".join(lines)


def commit(plan: "Plan", sample_input: Any, optimizer: Any) -> Report:
    """Put the new layers into the model."""
    if optimizer is not None:
        check_optimizer(optimizer)
    model = plan.model
    _check_unchanged(plan)
    before = None if sample_input is None else run_sample(model, sample_input)[0]
    olds = {id(change.old) for change in plan.changes}
    owners = [m for m in model.modules() if not olds.isdisjoint(map(id, m._modules.values()))]
    children = [(owner, dict(owner._modules)) for owner in owners]
    agreement = None
    try:
        result = model
        for change in plan.changes:
            for key in _HOOKS:  # the very dicts, so that handles still remove
                vars(change.new)[key] = vars(change.old)[key]
            result = put(result, change.names, change.new)
            _check_there(result, change)
        if sample_input is not None:
            agreement = compare(before, run_sample(result, sample_input)[0])
        for module in result.modules():
            if isinstance(module, fx.GraphModule):
                module.recompile()
    except BaseException as error:
        for owner, layers in children:
            owner._modules.clear()
            owner._modules.update(layers)
        if isinstance(error, AttributeError | TypeError):
            raise SurgeryError(f"a layer cannot be exchanged, so none was: {error}") from error
        raise
    report = Report(result, plan, agreement)
    if optimizer is not None:
        report.optimizer = _remap(optimizer, plan, result)
    return report


def _check_unchanged(plan: "Plan") -> None:
    for change in plan.changes:
        for name in change.names:
            if name and _at(plan.model, name) is not change.old:
                raise SurgeryError(
                    f"{name} is another layer than when the plan was made; make a new plan"
                )
        if change.versions != versions(change.old):
            raise SurgeryError(
                f"{change.names[0] or 'the model'} was trained, loaded or moved since the plan was "
                "made; make a new plan"
            )


def versions(layer: nn.Module) -> tuple[Any, ...]:
    """What changes whenever a tensor of a layer does."""
    tensors = [*layer._parameters.values(), *layer._buffers.values()]
    core = read(layer)
    if core is not None and core.core is not layer:
        tensors += [*core.core._parameters.values(), *core.core._buffers.values()]
    return tuple(
        (id(t), 0 if t.is_inference() else t._version, t.device, t.dtype, t.requires_grad)
        for t in tensors
        if t is not None
    )


def _check_there(model: nn.Module, change: "Change") -> None:
    for name in change.names:
        if name and _at(model, name) is not change.new:
            raise SurgeryError(f"{name} cannot be exchanged: its owner keeps what it has")


def _at(model: nn.Module, name: str) -> Any:
    parent, _, last = name.rpartition(".")
    return getattr(model.get_submodule(parent), last)


def _remap(optimizer: Any, plan: "Plan", model: nn.Module) -> str:
    replaced, added = [], []
    for change in plan.changes:
        old, new = read(change.old), read(change.new)
        assert old is not None
        assert new is not None
        was, now = old.core._parameters, new.core._parameters
        was = {name: p for name, p in was.items() if p is not None}
        replaced += [(p, now.get(name)) for name, p in was.items()]
        beside = next(iter(was.values()), None)
        added += [
            (p, beside)
            for name, p in now.items()
            if p is not None and p.requires_grad and name not in was and beside is not None
        ]
    return remap(optimizer, replaced, added, model)
