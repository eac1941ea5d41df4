"""Which code computes an operator: by the device of x.

Kernels are loaded when a tensor of their device first arrives. If that fails, plain torch computes
instead, with one warning.
"""

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

from normlab.ops import eager

KERNELS = {"cpu": "normlab.ops.cpu", "cuda": "normlab.ops.cuda"}


class SlowPathWarning(UserWarning):
    """Plain torch computes where a kernel was to: right, but slower."""


def operator(name: str) -> Callable[..., Any]:
    """What is registered for an operator: the function of that name for the device of x."""

    def chosen(*args: Any) -> Any:
        x = args[1] if name.endswith("backward") else args[0]
        found = getattr(code_for(x.device.type), name)(*args)
        if isinstance(found, tuple):  # of tensors only, in an operator: an empty one is none
            return tuple(x.new_empty(0) if t is None else t for t in found)
        return found

    return chosen


@functools.cache
def code_for(device: str) -> Any:
    """The module with the functions of `eager` that is right for a kind of device."""
    if device not in KERNELS:
        return eager
    try:
        return importlib.import_module(KERNELS[device])
    except ImportError as error:
        warn_slow(f"the kernels for {device} could not be loaded: {error}")
        return eager


@functools.cache
def warn_slow(reason: str) -> None:
    """Say once why plain torch computes."""
    warnings.warn(f"normlab computes in plain torch, {reason}", SlowPathWarning, stacklevel=2)
