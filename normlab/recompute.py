"""`recompute=True`: what later layers save of a norm's output is rebuilt in the backward pass.

A convolution keeps its input y for the backward pass, though y follows from x, which the norm
before it keeps anyway. So y is handed out as a tensor that runs each function it meets under
saved-tensor hooks, and these save `y = function(*inputs)` in place of y or of a view of it.

Where the hooks do not reach, as in a custom autograd.Function, y is kept as ever. Two layers that
save y rebuild it twice: to hold it from one to the other would cost the memory that is to be saved.
"""

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["Rebuildable", "check_recompute", "rebuildable"]


def check_recompute(recompute: Any) -> None:
    """Raise unless the argument is a bool."""
    if not isinstance(recompute, bool):
        kind = type(recompute).__name__
        raise TypeError(f"recompute must be True or False, got {recompute!r} ({kind})")


def rebuildable(y: Tensor, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """y, of which later layers save that it is function(*inputs), bit for bit.

    y stays the tensor it is, and later layers keep it, where nothing is saved (no_grad) or where
    others decide what is (torch.compile, tracing, function transforms, forward mode).
    """
    if (
        torch.compiler.is_compiling()
        or type(y) is not Tensor
        or not y.requires_grad
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    ):
        return y
    with torch._C.DisableTorchFunctionSubclass():
        recipe = Recipe(y, function, inputs)
    y.__class__ = Rebuildable  # a new tensor would be a view of y, and a node of the graph
    assert isinstance(y, Rebuildable)
    y._recipe = recipe
    return y


class Recipe:
    """How y came about: function(*inputs)."""

    def __init__(self, y: Tensor, function: Callable[..., Tensor], inputs: Sequence[Any]) -> None:
        self.function = function
        self.inputs = inputs
        self.versions = _versions(inputs)
        self.y = y.detach()  # has y's memory and version, not its graph
        self.value = Value(self.y)

    def makes(self, y: Tensor) -> bool:
        """Whether it still leads to these values, of y or of a view of it."""
        return (
            y._version == self.value.version
            and self.versions == _versions(self.inputs)
            and y.untyped_storage().data_ptr() == self.y.untyped_storage().data_ptr()
            and y.dtype == self.y.dtype
            and not y.is_neg()
        )


class Value:
    """A tensor as long as others hold it, or it is to be kept; None once it is gone or changed."""

    def __init__(self, y: Tensor) -> None:
        self.version = y._version
        self.get: Callable[[], Tensor | None] = weakref.ref(y)

    def keep(self, y: Tensor) -> None:
        self.get = lambda: y

    def __call__(self) -> Tensor | None:
        y = self.get()
        return y if y is not None and y._version == self.version else None


class Plain:
    """An attribute: the tensor as a torch.Tensor. Not a property, into which dynamo would trace."""

    def __get__(self, y: Tensor | None, owner: type) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return self if y is None else y.as_subclass(Tensor)


class Rebuildable(Tensor):
    """A tensor that later layers need not keep; in all else like any.

    Its views are of this class too, so that functions of them come by here; the recipe is y's.
    """

    _recipe: Recipe | None = None
    _plain = Plain()

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            return _compiling(function, args, kwargs)
        if not _OWN_TYPES.issuperset(types) or torch._C._len_torch_dispatch_stack():
            # tensors or modes of other kinds have a say in what is done and saved
            return function(*_each(_settle, args), **_each(_settle, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            if getattr(function, "__name__", "") == "__get__" or not _is_saving():
                return function(*args, **kwargs)  # an attribute saves nothing
            with _hooks():
                result = function(*args, **kwargs)
            for y in result if isinstance(result, tuple | list) else (result,):
                if type(y) is Tensor and y._is_view() and type(y._base) is Rebuildable:
                    y.__class__ = Rebuildable
            return result

    def __repr__(self) -> str:  # type: ignore[override]
        return repr(self._plain)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._plain.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> Any:
        return self._plain.__deepcopy__(memo)


def _compiling(function: Any, args: Any, kwargs: Any) -> Any:
    """The function while torch.compile is at work; what it traces runs on torch's own tensors."""
    if torch.compiler.is_dynamo_compiling():
        return function(*_each(_plain, args), **_each(_plain, kwargs))
    with torch._C.DisableTorchFunctionSubclass():
        return function(*args, **kwargs)


def _each(change: Callable[[Any], Tensor], value: Any) -> Any:
    """The value, with every rebuildable tensor in it changed."""
    if isinstance(value, Rebuildable):
        return change(value)
    if isinstance(value, dict):
        return {key: _each(change, part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)([_each(change, part) for part in value])
    return value


def _plain(y: Any) -> Tensor:
    return y._plain


def _settle(y: Tensor) -> Tensor:
    """y, from now on a tensor like others, which are kept."""
    y.__class__ = Tensor
    return y


def _is_saving() -> bool:
    """Whether what is saved now may be given to hooks."""
    return (
        torch.is_grad_enabled()
        and torch._C._autograd._saved_tensors_hooks_get_disabled_error_message() is None
    )


def _hooks() -> saved_tensors_hooks:
    """Hooks that save recipes; hooks around them get what a recipe holds, and all else."""
    around = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return _OUTERMOST if around is None else _hooks_within(*around)


def _hooks_within(keep: Callable[[Tensor], Any], get: Callable[[Any], Tensor]) -> Any:
    def later(value: Any) -> Callable[[], Any]:
        return functools.partial(get, keep(value)) if isinstance(value, Tensor) else lambda: value

    def save(y: Tensor) -> Callable[[], Tensor]:
        recipe = _recipe_of(y)
        if recipe is None or not recipe.makes(y):
            return later(y)
        inputs = [later(value) for value in recipe.inputs]
        view = y.size(), y.stride(), y.storage_offset()
        return functools.partial(_rebuild, recipe.value, recipe.function, inputs, view)

    return saved_tensors_hooks(save, lambda saved: saved())


def _recipe_of(y: Tensor) -> Recipe | None:
    origin = y._base if y._is_view() else y
    return origin._recipe if type(origin) is Rebuildable else None


def _rebuild(
    value: Value, function: Callable[..., Tensor], inputs: list[Callable[[], Any]], view: Any
) -> Tensor:
    y = value()
    if y is None:
        with torch.no_grad():
            y = function(*(get() for get in inputs))
    return y.as_strided(*view)


def _keep(t: Tensor) -> tuple[Tensor, int | None]:
    """The tensor without its graph, and the version to be found later, as torch checks it."""
    if recipe := _recipe_of(t):
        recipe.value.keep(recipe.y)  # kept anyway, so there is no need to rebuild it
    return t.detach(), _version(t)


def _get(kept: tuple[Tensor, int | None]) -> Tensor:
    t, version = kept
    if _version(t) != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace "
            f"operation: [{t.type()} {list(t.shape)}] is at version {t._version}; expected version "
            f"{version} instead"
        )
    return t


def _version(t: Tensor) -> int | None:
    return None if t.is_inference() else t._version


def _versions(values: Sequence[Any]) -> list[int | None]:
    return [_version(value) for value in values if isinstance(value, Tensor)]


_OWN_TYPES = {Tensor, Rebuildable}
_OUTERMOST = _hooks_within(_keep, _get)
