"""Norms that take over the addition and the activation after them, wherever a graph proves it.

A layer of torch's becomes ours by its class alone: the object, its parameters, hooks and names
stay. A block in which `activation(norm(x) + residual)` is found gets a subclass of its own class,
whose forward says so in one call. Its modules stay what they were, so that whoever runs them one by
one (`forward_features`, a replaced activation, a hook added later) gets what the network gave.
"""

from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase

import normlab.nn
from normlab.layer import Norm
from normlab.surgery.agreement import check_agreement
from normlab.surgery.batches import bare
from normlab.surgery.chain import Folded, Plan, is_ours
from normlab.surgery.graph import blocks, twin_of
from normlab.surgery.layers import SurgeryError, Where, matches, show_leaves, sites
from normlab.surgery.steps import activations_left, norm_of, rewrite, show, steps_after
from normlab.surgery.tables import aligned

# exact types: a subclass may do more in its forward than normalize
_FAST = {getattr(nn, name): getattr(normlab.nn, name) for name in normlab.nn.__all__}
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, Norm)


@dataclass(frozen=True)
class Fusible:
    """What becomes of one norm, or of an activation that no norm takes over.

    Args:
        name: its path in the model.
        kind: its class.
        takes: what a norm takes over, "" for nothing: "+ residual", "relu", "+ residual, relu".
        reason: why it takes over nothing, or is left.
    """

    name: str
    kind: str
    takes: str
    reason: str


@dataclass(frozen=True)
class Fusion:
    """What `fuse` does to a model: a table when printed."""

    norms: tuple[Fusible, ...]
    activations: tuple[Fusible, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Norms; those that take over an activation, a residual; those that take over nothing."""
        takes = [norm.takes for norm in self.norms]
        return {
            "norms": len(takes),
            "with activation": sum(bool(t.removeprefix("+ residual")) for t in takes),
            "with residual": sum(t.startswith("+ residual") for t in takes),
            "left": sum(not t for t in takes),
        }

    def __str__(self) -> str:
        rows = [(n.name or "the model", n.kind, n.takes or n.reason) for n in self.norms]
        rows += [(a.name, a.kind, f"left: {a.reason}") for a in self.activations]
        return "\n".join(
            [*aligned(rows), ", ".join(f"{n} {what}" for what, n in self.counts.items())]
        )


@dataclass(frozen=True)
class _Change:
    """New classes of layers and new forwards of blocks, by their names."""

    layers: dict[str, type]
    blocks: dict[str, Plan]
    report: Fusion


def fuse(model: nn.Module, sample_input: Any, *, where: Where | None = None) -> nn.Module:
    """Make norms fast, and let them take over the addition and activation after them.

    y = activation(norm(x) + residual)   in one pass,   where three were

    torch's norms become those of `normlab.nn`; their parameters, buffers, hooks and names stay, so
    a state_dict loads in both directions. Blocks are traced one by one, in training and evaluation;
    where one cannot be, its norms still become fast. `print(fusible(model, sample_input))` tells
    what takes over what, and why others do not. The model is changed in place; it can be trained,
    copied, pickled and compiled.

    Args:
        sample_input: what the model is called with, in training too; a tuple is its arguments.
            Small is enough. Outputs, gradients and running statistics for it are compared before
            anything is changed, in float64 where the model can.
        where: which norms, by a glob ("layer1.*") or a predicate of (name, layer); None is all.

    Raises:
        SurgeryError: no norm, a model that does not run on the input, or results that differ; the
            model is unchanged.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> x = torch.randn(2, 3, 8, 8)
    >>> before = model.eval()(x)
    >>> torch.allclose(fuse(model, x)(x), before, atol=1e-6)
    True
    """
    inner = bare(model, "fuse")
    change = _change(inner, sample_input, where)
    after, sample = twin_of(inner, sample_input)
    _commit(after, change)
    check_agreement(inner, after, sample)
    _commit(inner, change)
    return model


def fusible(model: nn.Module, sample_input: Any, *, where: Where | None = None) -> Fusion:
    """What `fuse` would do, norm by norm; changes nothing.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> print(fusible(model, torch.randn(2, 3, 8, 8)))
    1  BatchNorm2d  relu
    1 norms, 1 with activation, 0 with residual, 0 left
    """
    return _change(bare(model, "fuse"), sample_input, where).report


def _commit(model: nn.Module, change: _Change) -> None:
    new = {**change.layers, **{name: plan.folded for name, plan in change.blocks.items()}}
    old: list[tuple[nn.Module, type]] = []
    try:
        for name, cls in new.items():
            module = model.get_submodule(name)
            old.append((module, type(module)))
            module.__class__ = cls
            if name in change.layers:
                vars(module).update(activation=None, recompute=False)
    except TypeError as error:
        for module, cls in old:
            module.__class__ = cls
        raise SurgeryError(f"{name}: cannot become a {cls.__name__}: {error}") from None


def _change(model: nn.Module, sample_input: Any, where: Where | None) -> _Change:
    """What to change, found on a copy."""
    twin, sample = twin_of(model, sample_input)
    chosen = [s for s in sites(twin, lambda m: isinstance(m, _NORMS)) if matches(s, where)]
    names = {id(s.layer): s.names[0] for s in chosen}
    kinds = {s.names[0]: type(s.layer) for s in chosen}
    unfit = {s.names[0]: _unfit(s.layer) for s in chosen}
    fast = {n: _FAST[cls] for n, cls in kinds.items() if cls in _FAST and not unfit[n]}
    _commit(twin, _Change(fast, {}, Fusion((), ())))
    found: dict[str, list[Fusible]] = {name: [] for name in kinds}
    activations: dict[str, Fusible] = {}
    plans, problems = {}, {}
    for block in blocks(twin, sample, _is_block, (True, False)):
        module = twin.get_submodule(block.name)
        problems[block.name] = block.problem
        rewritten = False
        for graph in block.graphs.values():
            for node in list(graph.nodes):
                norm = norm_of(module, node)
                name = block.name if norm is module else names.get(id(norm), "")
                if norm is None or (where is not None and name not in kinds):
                    continue
                steps, reason = steps_after(module, node)
                rewrite(node, steps)
                rewritten |= bool(steps) or norm is module
                kind = kinds.get(name, type(norm)).__name__
                found.setdefault(name, []).append(Fusible(name, kind, show(steps), reason))
            for name, kind, reason in activations_left(module, graph):
                path = f"{block.name}.{name}".lstrip(".")
                activations[path] = Fusible(path, kind, "", reason)
        if rewritten and block.conditions is not None:
            base = module._plan.base if isinstance(module, Folded) else type(module)
            plans[block.name] = Plan(base, block.conditions, block.graphs)
    if not found:
        raise SurgeryError(
            f"0 norms matched, so there is nothing to fuse; it has {show_leaves(model)}"
        )
    rows = [
        _row(outcomes)
        if outcomes
        else Fusible(name, kinds[name].__name__, "", unfit[name] or _unreached(name, problems))
        for name, outcomes in found.items()
    ]
    return _Change(fast, plans, Fusion(tuple(rows), tuple(activations.values())))


def _row(outcomes: list[Fusible]) -> Fusible:
    """One row of what becomes of a norm in all its calls, in training and in evaluation."""
    takes = dict.fromkeys(o.takes for o in outcomes if o.takes)
    reasons = dict.fromkeys(o.reason for o in outcomes if o.reason)
    return Fusible(outcomes[0].name, outcomes[0].kind, " or ".join(takes), "; ".join(reasons))


def _is_block(module: nn.Module) -> bool:
    """Whether a module may run a norm: it has one, or is of a class that is not torch's."""
    if isinstance(module, fx.GraphModule):
        return False
    foreign = not type(module).__module__.startswith(("torch.nn.", "normlab."))
    return foreign or any(isinstance(m, _NORMS) for m in list(module.modules())[1:])


def _unfit(layer: Any) -> str:
    """Why a norm can neither become one of ours nor is one."""
    if is_ours(layer):
        return ""
    if type(layer) not in _FAST:
        return f"{type(layer).__name__} has a forward of its own"
    if layer.eps is not None and not layer.eps > 0:
        return f"eps is {layer.eps}, ours is positive"
    is_instance = isinstance(layer, nn.modules.instancenorm._InstanceNorm)
    if is_instance and layer.track_running_stats and layer.momentum is None:
        return "momentum=None never moves running statistics in torch, and averages in ours"
    return ""


def _unreached(name: str, problems: dict[str, str]) -> str:
    """Why no call of a norm was found: the nearest block around it that could not be traced."""
    around = [block for block, problem in problems.items() if problem and _within(name, block)]
    if not around:
        return "is not called with the sample input, or by a module's own forward"
    nearest = max(around, key=len)
    return f"{nearest or 'the model'} {problems[nearest]}"


def _within(name: str, block: str) -> bool:
    return not block or name == block or name.startswith(block + ".")
