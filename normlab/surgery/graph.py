"""What each block of a model computes: the fx graph of its own forward, with its children opaque.

A block is a module that runs others. Taken one by one, they keep their names, classes and hooks
when something in them is rewritten, and one that cannot be traced costs nobody else. A graph holds
for what was fixed while it was made; `Conditions` says what that was.
"""

import copy
import operator
import random
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from normlab.surgery.layers import SurgeryError

FIXED = (bool, int, float, str, type(None))  # values that decide which way a forward takes
_DEVICES = ("cpu", "cuda")


class Conditions(NamedTuple):
    """What a graph was made under: it is that of any other call for which these are equal.

    Args:
        arguments: the value of a plain one, else what kind it is.
        children: names of the submodules, in order, without those that are None.
        attributes: the block's plain ones, by name.
    """

    arguments: tuple[Any, ...]
    children: tuple[str, ...]
    attributes: tuple[tuple[str, Any], ...]

    def fit(self, args: tuple[Any, ...]) -> bool:
        """Whether these arguments are of the same kinds."""
        return tuple(map(_kind, args)) == self.arguments

    def changed(self, block: nn.Module) -> str:
        """What of the block is no longer as it was."""
        if _children(block) != self.children:
            return "its submodules"
        now = ((name, value, getattr(block, name, FIXED)) for name, value in self.attributes)
        others = [name for name, value, new in now if new is not value and new != value]
        return ", ".join(others)


class Block(NamedTuple):
    """A module that was run, and its graphs in training and evaluation; a reason where none is.

    Shapes of tensors are in the nodes' meta, as "shape".
    """

    name: str
    conditions: Conditions | None
    graphs: dict[bool, fx.Graph]
    problem: str


def blocks(
    model: nn.Module, sample_input: Any, wanted: Callable[[nn.Module], bool], modes: Iterable[bool]
) -> list[Block]:
    """The modules wanted that the sample input reaches, in the order they are reached.

    Runs the model, so give a copy.

    Args:
        modes: True to run in training, False in evaluation.

    Raises:
        SurgeryError: the model does not run on the input.
    """
    found: dict[str, Block] = {}
    hooks = [
        module.register_forward_pre_hook(_observer(name, found), with_kwargs=True)
        for name, module in model.named_modules()
        if wanted(module) and not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        for training in modes:
            model.train(training)
            mode = "training" if training else "evaluation"
            try:
                with torch.no_grad(), torch.random.fork_rng():
                    call(model, sample_input)
            except Exception as error:  # whatever the model raises
                raise SurgeryError(
                    f"the model does not run in {mode} on the sample input "
                    f"({type(error).__name__}: {error}); give one that it takes"
                ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return list(found.values())


def call(model: nn.Module, sample_input: Any) -> Any:
    """The output for a sample input: a tuple is the arguments, anything else the only one."""
    return model(*sample_input) if isinstance(sample_input, tuple) else model(sample_input)


def twin_of(model: nn.Module, sample_input: Any) -> tuple[nn.Module, Any]:
    """Copies of a model and its input to try things on.

    Raises:
        SurgeryError: the model cannot be copied.
    """
    try:
        return copy.deepcopy(model), copy.deepcopy(sample_input)
    except RuntimeError as error:
        raise SurgeryError(f"the model is tried on a copy, and cannot be copied: {error}") from None


def has_hooks(module: nn.Module) -> bool:
    """Whether anybody watches what goes in or out of a module."""
    hooks = torch.nn.modules.module
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
        or hooks._global_backward_hooks
        or hooks._global_backward_pre_hooks
    )


def module_of(block: nn.Module, node: Any) -> nn.Module | None:
    """The submodule a node calls with one argument, or None if it does anything else."""
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    plain = len(node.args) == 1 and not node.kwargs
    return block.get_submodule(str(node.target)) if plain else None


def _observer(name: str, found: dict[str, Block]) -> Callable[..., None]:
    """A pre-hook that traces a block at its first call in each mode; later ones must be alike."""

    def observe(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        old = found.get(name)
        if old is None:
            if kwargs:
                found[name] = Block(name, None, {}, f"is called with {', '.join(kwargs)}= by name")
                return
            old = found[name] = Block(name, _conditions(block, args), {}, "")
        if old.conditions is None or old.problem:
            return
        if kwargs or not old.conditions.fit(args):
            found[name] = Block(name, None, {}, "is called with different kinds of arguments")
        elif block.training not in old.graphs:
            try:
                old.graphs[block.training] = _graph(block, args)
            except SurgeryError as error:
                found[name] = Block(name, None, {}, str(error))

    return observe


def _graph(block: nn.Module, args: tuple[Any, ...]) -> fx.Graph:
    """The graph of a forward, with shapes.

    Raises:
        SurgeryError: it does something that a graph does not tell.
    """
    before, random_before = _state(block), _random_state()
    given = [args[i] for i in range(len(args)) if not isinstance(args[i], FIXED)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = _Tracer(args).trace(block)
            shapes = _Shapes(block, graph=graph)
            if not _differs(before, _state(block)) and _random_state() == random_before:
                shapes.run(*given)
                return graph
    except SurgeryError:
        raise
    except Exception as error:  # whatever code raises that expects tensors and gets proxies
        reason = " ".join(str(error).split("\n")[0].split())[:120]
        raise SurgeryError(f"cannot be traced: {type(error).__name__}: {reason}") from None
    changed = _differs(before, _state(block))
    for key in changed:
        if key in before:
            vars(block)[key] = before[key]
        else:
            vars(block).pop(key)
    if changed:
        raise SurgeryError(f"its forward sets {', '.join(changed)}")
    raise SurgeryError("its forward draws random numbers, which a graph would fix")


class _Tracer(fx.Tracer):
    """Follows a block's own forward; every module it calls is one step."""

    proxy_buffer_attributes = True  # a buffer that is changed in place is no constant

    def __init__(self, args: tuple[Any, ...]) -> None:
        super().__init__()
        self.given = args
        self.around: Any = None

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        inputs = [
            a if isinstance(a, FIXED) else self.create_proxy("placeholder", f"x{i}", (), {})
            for i, a in enumerate(self.given)
        ]
        return root_fn, [self.root, *inputs]

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        # everything that a context manager may turn off is on, so that none goes unnoticed
        before = [torch.is_autocast_enabled(d) for d in _DEVICES]
        try:
            for device in _DEVICES:
                torch.set_autocast_enabled(device, True)
            with torch.enable_grad():
                self.around = _surroundings()
                return super().trace(root)
        finally:
            for device, enabled in zip(_DEVICES, before):
                torch.set_autocast_enabled(device, enabled)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _surroundings() != self.around:
            raise SurgeryError("part of its forward runs under no_grad, autocast or checkpoint")
        return super().create_node(*args, **kwargs)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if not any(m is known for known in self.root.modules()):
            return forward(*args, **kwargs)  # made on the way, as a Sequential of one's own layers
        return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


class _Proxy(fx.Proxy):
    """Tells `x += y`, which others may see in x, from `x = x + y`."""


def _in_place(function: Any) -> Any:
    def method(self: _Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"):
    setattr(_Proxy, f"__i{_name}__", _in_place(getattr(operator, f"__i{_name}__")))


class _Shapes(fx.Interpreter):
    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if isinstance(value, Tensor):
            node.meta["shape"] = tuple(value.shape)
        return value


def _surroundings() -> tuple[Any, ...]:
    """What context managers have switched, that a graph does not tell."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)  # type: ignore[attr-defined]
    switched = [torch.is_autocast_enabled(d) for d in _DEVICES]
    types = [torch.get_autocast_dtype(d) for d in _DEVICES]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *switched, *types, hooks


def _random_state() -> tuple[Any, ...]:
    return torch.get_rng_state().numpy().tobytes(), random.getstate()


def _state(block: nn.Module) -> dict[str, Any]:
    return dict(vars(block))


def _differs(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [key for key in after if key not in before or after[key] is not before[key]]


def _conditions(block: nn.Module, args: tuple[Any, ...]) -> Conditions:
    attributes = [
        (name, value)
        for name, value in vars(block).items()
        if type(value) in FIXED and name != "training" and not name.startswith("_is_full")
    ]
    return Conditions(tuple(map(_kind, args)), _children(block), tuple(attributes))


def _kind(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return Tensor
    if isinstance(argument, FIXED):
        return argument
    # fx has lists and tuples of its own
    return next((kind for kind in (list, tuple) if isinstance(argument, kind)), type(argument))


def _children(block: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, child in block._modules.items() if child is not None)
