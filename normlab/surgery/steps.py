"""What follows a norm in the graph of a block, an addition and an activation that it can take over.

What may be moved: the norm to the addition, as a residual may be computed in between, and the
activation to whichever of the two comes last. A norm's input cannot change in between: the norm's
own backward pass needs it.
"""

import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F

from normlab.pattern import show as show_shape
from normlab.surgery.chain import GELU, activation_of, chain, functional_chain, is_ours
from normlab.surgery.graph import has_hooks, module_of

_NORM_FUNCTIONS = {
    getattr(F, name): name
    for name in ("batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm")
}
_IN_PLACE = {operator.iadd, "add_"}
_ADDITIONS = {operator.add, torch.add, "add", *_IN_PLACE}
_ACTIVATIONS: dict[Any, str] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), "relu"),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), "leaky_relu"),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_"), "sigmoid"),
    **dict.fromkeys((F.tanh, torch.tanh, torch.tanh_, "tanh", "tanh_"), "tanh"),
    F.silu: "silu",
    F.hardswish: "hardswish",
    F.gelu: "gelu",
}


class Step(NamedTuple):
    """A node after a norm that the norm can take over.

    Args:
        what: "+", an activation's name, or "none" for a module that does nothing.
        value: what is added, or the activation's name, or the node itself if that calls a module.
    """

    node: fx.Node
    what: str
    value: Any


def norm_of(block: nn.Module, node: fx.Node) -> nn.Module | None:
    """The norm of ours that a node calls; the block itself if it calls a norm's function."""
    if node.op == "call_function" and node.target in _NORM_FUNCTIONS and node.args:
        return block
    module = module_of(block, node)
    return module if module is not None and is_ours(module) else None


def steps_after(block: nn.Module, norm: fx.Node) -> tuple[list[Step], str]:
    """The steps a norm can take over, or why there are none."""
    layer: Any = module_of(block, norm)
    if layer is not None and layer.activation is not None:
        return [], f"applies {layer.activation} already"
    if layer is not None and has_hooks(layer):
        return [], "has hooks"
    steps: list[Step] = []
    last, reason = norm, ""
    while not reason and (not steps or steps[-1].what in ("+", "none")):
        step = _step(block, last, steps)
        if isinstance(step, str):
            reason = step
        else:
            steps.append(step)
            last = step.node
    while steps and steps[-1].what == "none":
        steps.pop()
    return steps, "" if steps else reason


def rewrite(norm: fx.Node, steps: list[Step]) -> None:
    """Put one call in place of a norm and its steps."""
    if norm.op == "call_module" and not steps:
        return
    graph = norm.graph
    before = next((step.node for step in steps if step.what == "+"), norm)
    with graph.inserting_before(before):
        values = [
            graph.create_node("get_attr", s.node.target) if s.value is s.node else s.value
            for s in steps
        ]
        if norm.op == "call_module":
            layer = graph.create_node("get_attr", norm.target)
            new = graph.call_function(chain, (layer, norm.args[0], *values))
        else:
            name = _NORM_FUNCTIONS[norm.target]
            new = graph.call_function(
                functional_chain, (name, norm.args, dict(norm.kwargs), *values)
            )
    nodes = [norm, *(step.node for step in steps)]
    new.meta.update(nodes[-1].meta)
    nodes[-1].replace_all_uses_with(new)
    for node in reversed(nodes):
        graph.erase_node(node)


def activations_left(block: nn.Module, graph: fx.Graph) -> Iterator[tuple[str, str, str]]:
    """Name, kind and reason of every activation that no norm took over."""
    for node in graph.nodes:
        module = module_of(block, node)
        name = _called(node) if module is None else activation_of(module)
        if name not in (None, "none"):
            kind = name if module is None else type(module).__name__
            first = node.args[0]
            yield node.name, kind, f"follows {_name(block, first)}"


def show(steps: list[Step]) -> str:
    """What a norm takes over, in words: "+ residual, relu"."""
    words = ["+ residual" if s.what == "+" else s.what for s in steps if s.what != "none"]
    return ", ".join(words)


def _step(block: nn.Module, last: fx.Node, steps: list[Step]) -> Step | str:
    """The step after a node, or why there is none."""
    if len(last.users) != 1:
        return f"its output goes to {len(last.users)} places"
    user = next(iter(last.users))
    if list(user.args).count(last) != 1:
        return f"its output goes to {_name(block, user)}" + " twice" * (user.args.count(last) > 1)
    module = module_of(block, user)
    if module is not None:
        name = activation_of(module)
        if name is not None:
            return Step(user, name, user)
        watched = ", which has hooks" * has_hooks(module)
        return f"its output goes to {_name(block, user)}{watched}"
    if user.op != "call_module" and user.target in _ADDITIONS:
        value = _added(last, user, steps)
        return value if isinstance(value, str) else Step(user, "+", value)
    name = _called(user)
    return Step(user, name, name) if name else f"its output goes to {_name(block, user)}"


def _added(last: fx.Node, user: fx.Node, steps: list[Step]) -> fx.Node | str:
    """What is added to a norm's output, or why that is no residual."""
    if len(user.args) != 2 or any(k != "alpha" or v != 1 for k, v in user.kwargs.items()):
        return "is added with alpha or out"
    if any(step.what == "+" for step in steps):
        return "two tensors are added"
    first, second = user.args
    other = second if first is last else first
    if not isinstance(other, fx.Node) or "shape" not in other.meta:
        return "a number is added"
    if other.meta["shape"] != last.meta.get("shape"):
        shapes = (show_shape(n.meta.get("shape", ())) for n in (last, other))
        return "residual of another shape: {} + {}".format(*shapes)
    if user.target in _IN_PLACE and first is not last:
        return "is added in place to a tensor that others may hold"
    return other


def _called(node: fx.Node) -> str | None:
    """The name of the activation a function or method call is."""
    if node.op not in ("call_function", "call_method") or node.target not in _ACTIVATIONS:
        return None
    name = _ACTIVATIONS[node.target]
    options = {**node.kwargs}
    options.pop("inplace", None)
    given = [a for a in node.args[1:] if not isinstance(a, bool)]
    if name == "leaky_relu":
        slope = given.pop(0) if given else options.pop("negative_slope", 0.01)
        name = name if slope == 0.01 else ""
    if name == "gelu":
        name = GELU.get(str(options.pop("approximate", "none")), "")
    return None if options or given else name or None


def _name(block: nn.Module, node: Any) -> str:
    """A node in words."""
    if not isinstance(node, fx.Node):
        return repr(node)
    if node.op == "output":
        return "whoever called its block"
    if node.op == "placeholder":
        return "the block's input"
    if node.op == "call_module":
        return f"{node.target} ({type(block.get_submodule(str(node.target))).__name__})"
    if node.target in (chain, functional_chain):
        return "another norm, as its residual"
    return getattr(node.target, "__name__", str(node.target))
