"""What a fused block runs: a norm and the steps after it, in one pass where they can be one.

The graph proved only that one follows the other. What they are is looked at in every call: a norm
that was replaced, an activation that was swapped or is watched by a hook, or a residual of another
shape is run step by step, as the block did before.
"""

import copy
import functools
import warnings
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional as F

import normlab.nn
from normlab import functional, norms
from normlab.layer import CATALOGUE
from normlab.ops import ACTIVATIONS
from normlab.surgery.graph import FIXED, Conditions, has_hooks

_OURS = [getattr(normlab.nn, name) for name in normlab.nn.__all__]
_OURS += [cls for cls in CATALOGUE.values() if cls is not norms.NoNorm]
_FORWARDS = [cls.forward for cls in _OURS]

_SIMPLE = {
    nn.Identity: "none",
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
}
GELU = {"none": "gelu", "tanh": "gelu_tanh"}
_NAMED = {  # by name, so that nothing is imported
    "timm.layers.activations.GELU": "gelu",
    "timm.layers.activations.GELUTanh": "gelu_tanh",
    "timm.layers.activations.Sigmoid": "sigmoid",
    "timm.layers.activations.Swish": "silu",
    "timm.layers.activations.Tanh": "tanh",
}


def chain(norm: nn.Module, x: Tensor, *steps: Any) -> Tensor:
    """norm(x), then each step: a module or an activation's name is applied, a tensor is added."""
    taken = taken_over(x, steps) if takes_over(norm) else None
    if taken is None:
        return _one_by_one(norm(x), steps)
    activation, residual = taken
    return _activated(norm, activation)(x, residual)


def functional_chain(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *steps: Any) -> Any:
    """`chain` for one of torch.nn.functional's norms."""
    taken = taken_over(args[0], steps)
    if taken is None:
        return _one_by_one(getattr(F, name)(*args, **kwargs), steps)
    activation, residual = taken
    ours = getattr(functional, name)
    return ours(*args, **kwargs, activation=activation, residual=residual)


def takes_over(norm: nn.Module) -> bool:
    """Whether a layer is one of ours that has no activation yet, and nobody watches its output."""
    return is_ours(norm) and norm.activation is None and not has_hooks(norm)


def is_ours(norm: nn.Module) -> bool:
    """Whether a layer's forward is that of a norm of ours, whatever its class is called."""
    return any(type(norm).forward is forward for forward in _FORWARDS)


def taken_over(x: Any, steps: tuple[Any, ...]) -> tuple[str, Tensor | None] | None:
    """The activation and the residual that steps are, or None if they are more than that."""
    if not isinstance(x, Tensor):
        return None
    activation, residual = "none", None
    for step in steps:
        if isinstance(step, Tensor):
            alike = step.shape == x.shape and step.dtype == x.dtype and step.device == x.device
            if not alike or residual is not None or activation != "none":
                return None
            residual = step
            continue
        name = step if isinstance(step, str) else activation_of(step)
        if name is None or (name != "none" and activation != "none"):
            return None
        activation = activation if name == "none" else name
    return activation, residual


def activation_of(module: Any) -> str | None:
    """The name of what an unwatched module applies to each element, or None if it has none."""
    if not isinstance(module, nn.Module) or has_hooks(module):
        return None
    if type(module) is nn.LeakyReLU:
        return "leaky_relu" if module.negative_slope == 0.01 else None
    if type(module) is nn.GELU:
        return GELU.get(module.approximate)
    if type(module) in _SIMPLE:
        return _SIMPLE[type(module)]
    return _NAMED.get(f"{type(module).__module__}.{type(module).__qualname__}")


def _one_by_one(y: Any, steps: tuple[Any, ...]) -> Any:
    for step in steps:
        if isinstance(step, str):
            y = ACTIVATIONS[step][0](y)
        else:
            y = step(y) if isinstance(step, nn.Module) else y + step
    return y


def _activated(norm: Any, activation: str) -> Any:
    """The forward of the same layer, with an activation; the layer itself stays as it is."""
    layer = object.__new__(type(norm))
    layer.__dict__.update(norm.__dict__, activation=activation)
    return layer.forward


class Plan:
    """A block's forward, rewritten.

    Args:
        base: the block's class.
        conditions: under which the graphs are its forward; else the class's own runs.
        graphs: in training and in evaluation.
    """

    def __init__(self, base: type, conditions: Conditions, graphs: dict[bool, fx.Graph]) -> None:
        self.base = base
        self.conditions = conditions
        self.graphs = graphs

    @functools.cached_property
    def folded(self) -> type:
        """The subclass of the block's class that runs the graphs."""
        inside = {"forward": _forward(self), "_plan": self, "__module__": __name__}
        return type(f"Folded{self.base.__name__}", (Folded, self.base), inside)

    def __deepcopy__(self, memo: Any) -> "Plan":
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "folded"}


class Folded:
    """A block with a rewritten forward; all else is that of its own class."""

    _plan: Plan

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, (self._plan,), self.__getstate__()


def _blank(plan: Plan) -> Any:
    """A folded block without its state, for copies and pickles."""
    return object.__new__(plan.folded)


def _forward(plan: Plan) -> Any:
    base: Any = plan.base
    functions = {training: _function(graph) for training, graph in plan.graphs.items()}
    conditions = plan.conditions

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        function = functions.get(self.training)
        if function is None or kwargs or not conditions.fit(args):
            return base.forward(self, *args, **kwargs)
        if changed := conditions.changed(self):
            warnings.warn(
                f"{base.__name__} runs unfused, as {changed} changed since; fuse again",
                stacklevel=2,
            )
            return base.forward(self, *args)
        return function(self, *[a for a in args if not isinstance(a, FIXED)])

    return forward


def _function(graph: fx.Graph) -> Any:
    """The code of a graph, as a function of the block and its inputs."""
    named = {n.target: nn.Identity() for n in graph.nodes if n.op in ("get_attr", "call_module")}
    return type(fx.GraphModule(named, copy.deepcopy(graph))).forward
