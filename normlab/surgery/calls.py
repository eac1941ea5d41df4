"""Norms a model calls as functions: no layer, so nothing that could be swapped, but not hidden."""

from collections import Counter
from types import CodeType
from typing import Any

from torch import fx, nn

from normlab.surgery.rules import read, reason_to_leave

_NAMES = {"batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"}


def functional_norms(model: nn.Module) -> list[str]:
    """A line for each kind of call outside the norms themselves; counted where fx can trace.

    Only a network whose code names such a function is traced, as that takes long.
    """
    named: Counter[tuple[str, str]] = Counter()
    for module in model.modules():
        if type(module).__module__.startswith("torch.nn.") or _is_norm(module):
            continue
        for name in _NAMES & _names_in(getattr(type(module).forward, "__code__", None)):
            named[type(module).__name__, name] += 1
    if not named:
        return []
    counted = _counted(model)
    if counted is None:
        return [
            f"{modules} {owner} {'names' if modules == 1 else 'name'} F.{name} in forward, which "
            "cannot be swapped (nor counted, as fx cannot trace the model)"
            for (owner, name), modules in sorted(named.items())
        ]
    return [
        f"{calls} call{'s' * (calls > 1)} of F.{name}, which cannot be swapped; use a layer"
        for name, calls in sorted(counted.items())
    ]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_norm(m) or super().is_leaf_module(m, module_qualified_name)


def _counted(model: nn.Module) -> Counter[str] | None:
    try:
        graph = _Tracer().trace(model)
    except Exception:  # whatever a forward does with a proxy; that it cannot be traced is said
        return None
    names = (getattr(n.target, "__name__", "") for n in graph.nodes if n.op == "call_function")
    return Counter(name for name in names if name in _NAMES)


def _names_in(code: Any) -> set[str]:
    """Attribute and global names a function uses, in nested functions too."""
    if not isinstance(code, CodeType):
        return set()
    return set(code.co_names).union(*map(_names_in, code.co_consts))


def _is_norm(module: nn.Module) -> bool:
    return read(module) is not None or reason_to_leave(module) is not None
