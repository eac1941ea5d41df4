"""What cannot be converted, and how it is said: wrappers of models, layers, and their owners."""

import inspect
import re
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from normlab.layer import Norm
from normlab.surgery.layers import Site, SurgeryError
from normlab.surgery.rules import Followed, qualified, read

_WRAPPERS = {  # classes, by name, as most are loaded by few
    "torch.nn.parallel.distributed.DistributedDataParallel": "DistributedDataParallel",
    "torch.nn.parallel.data_parallel.DataParallel": "DataParallel",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": "FSDP",
    "torch.distributed.fsdp.FSDPModule": "fully_shard",
}


def check_model(model: Any) -> None:
    """Raise unless the layers of a model can be reached and exchanged."""
    if isinstance(model, torch.export.ExportedProgram):
        raise SurgeryError("an exported program has no layers; convert before torch.export")
    if not isinstance(model, nn.Module):
        raise SurgeryError(f"expected a torch.nn.Module, got a {type(model).__name__}")
    for name, module in model.named_modules():
        where = f"{name or 'the model'} "
        if isinstance(module, torch.jit.ScriptModule):
            raise SurgeryError(
                f"{where}is a ScriptModule, whose layers cannot be exchanged; "
                "convert before torch.jit.script"
            )
        for cls in type(module).__mro__:
            wrapper = _WRAPPERS.get(f"{cls.__module__}.{cls.__qualname__}")
            if wrapper:
                raise SurgeryError(
                    f"{where}is wrapped in {wrapper}, which has taken hold of its parameters; "
                    "convert before wrapping"
                )
        if _is_exported(module):
            raise SurgeryError(
                f"{where}is an exported program, where norms are no layers any more; "
                "convert before torch.export"
            )


def problem(model: nn.Module, site: Site, held: dict[int, str]) -> str | None:
    """Why a norm cannot be exchanged, or None.

    Args:
        held: see `plainly_held`.
    """
    why = lazy_or_quantized(site.layer) or _of_layer(site.layer)
    if why is None and id(site.layer) in held:
        why = f"is also in {held[id(site.layer)]}, where the old layer would stay; clear it first"
    return why or next(
        (w for name in site.names if (w := _of_owner(model, name, site.layer))), None
    )


def plainly_held(model: nn.Module) -> dict[int, str]:
    """By id, the modules kept in plain lists, tuples or dicts, where no module looks for them."""
    found = {}
    for owner in model.modules():
        for name, value in vars(owner).items():
            if name.startswith("_") or not isinstance(value, list | tuple | dict):
                continue
            for item in value.values() if isinstance(value, dict) else value:
                if isinstance(item, nn.Module):
                    found[id(item)] = f"{type(owner).__name__}.{name}"
    return found


def _of_layer(layer: nn.Module) -> str | None:
    reading = read(layer)
    assert reading is not None
    core = reading.core
    if hasattr(core, "parametrizations"):
        names = ", ".join(core.parametrizations)
        return (
            f"its {names} is parametrized; remove that first "
            "(torch.nn.utils.parametrize.remove_parametrizations)"
        )
    extra = set(core._parameters) - {"weight", "bias"}
    if extra and not isinstance(core, Norm):
        return f"has a parameter {min(extra)}, so its weight is computed; remove that first"
    if "forward" in vars(core):
        return "its forward was replaced on the instance, and would be lost; restore it first"
    return None


def _of_owner(model: nn.Module, name: str, layer: nn.Module) -> str | None:
    if not name:
        return None
    parent, _, last = name.rpartition(".")
    try:
        owner = model.get_submodule(parent)
    except AttributeError:
        return "its name has a dot within, so that it cannot be found by it"
    kind = type(owner)
    if kind.__module__.startswith("torch.ao."):
        return f"is part of a {kind.__name__}, which computes with it; convert before quantizing"
    if kind.__setattr__ is not nn.Module.__setattr__:
        return f"its owner {kind.__name__} has a __setattr__ of its own; exchange it by hand"
    if _is_descriptor(kind, last):
        return f"{last} is a read-only attribute or slot of {kind.__name__}; exchange it by hand"
    reading = read(layer)
    if reading and reading.then and not isinstance(layer, Followed):
        read_of_it = _attributes_read(kind, last)
        if read_of_it:
            kinds = ", ".join(type(m).__name__ for m in reading.then)
            return (
                f"{kinds} inside it has no name here and would follow the new norm, but "
                f"{kind.__name__} reads {last}.{read_of_it}"
            )
    return None


def lazy_or_quantized(layer: nn.Module) -> str | None:
    """Why a layer of a class without a rule must not be passed over in silence, or None."""
    if qualified(layer).startswith("torch.ao."):
        return f"{type(layer).__name__} is quantized; convert before quantizing"
    if any(map(is_lazy, (*layer.parameters(recurse=False), *layer.buffers(recurse=False)))):
        return "has no size yet; run one batch first"
    return None


def _is_exported(module: nn.Module) -> bool:
    if qualified(module) == "torch.export.unflatten.UnflattenedModule":
        return True
    if not isinstance(module, torch.fx.GraphModule):
        return False
    return any(isinstance(n.target, torch._ops.OpOverload) for n in module.graph.nodes)


def _is_descriptor(kind: type, name: str) -> bool:
    """Whether a class decides itself what an attribute is."""
    found = inspect.getattr_static(kind, name, None)
    return hasattr(type(found), "__set__") or isinstance(found, property)


def _attributes_read(kind: type, name: str) -> str | None:
    """The first attribute of `self.name` that forward reads."""
    try:
        source = inspect.getsource(getattr(kind, "forward", kind))
    except (OSError, TypeError):
        return None
    found = re.search(rf"\bself\.{re.escape(name)}\.(\w+)", source)
    return found[1] if found else None
