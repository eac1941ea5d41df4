"""The functions of `normlab.ops.cuda` on a GPU, or on the CPU in Triton's interpreter."""

import functools
import importlib
import sys

import numpy as np
import torch
import triton
from oracle import assert_within, sample
from triton.runtime.interpreter import InterpretedFunction

from normlab import ops, reference
from normlab.ops import device

CUDA = device.KERNELS["cuda"]


def interpreted():
    """A copy of the kernels made for Triton's interpreter, apart from those made for a GPU."""

    def parts():
        return [name for name in sys.modules if name.startswith(CUDA)]

    ours = {name: sys.modules.pop(name) for name in parts()}
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = True
        copy = importlib.import_module(CUDA)
    for name in parts():
        del sys.modules[name]
    sys.modules.update(ours)
    del ops.cuda
    if CUDA in ours:
        ops.cuda = ours[CUDA]
    return copy


def without_patching_twice(monkeypatch):
    """The interpreter, without what takes it half its time.

    It makes the language its own when a kernel starts, and needlessly once more whenever a kernel
    calls a function.
    """

    def call(function, *args, **options):
        return function.rewrite()(*args, **options)

    monkeypatch.setattr(InterpretedFunction, "__call__", call)


class Kernels:
    """The functions of the module on one device; tensors come from the CPU and go back there."""

    def __init__(self, place):
        self.place = place
        load = interpreted if place == "cpu" else functools.partial(importlib.import_module, CUDA)
        self.module = load()

    def __getattr__(self, name):
        def call(*args):
            args = [a.to(self.place) if isinstance(a, torch.Tensor) else a for a in args]
            with np.errstate(all="ignore"):  # the interpreter's: exp may overflow, inf - inf be NaN
                found = getattr(self.module, name)(*args)
            return (
                found.cpu()
                if isinstance(found, torch.Tensor)
                else [t if t is None else t.cpu() for t in found]
            )

        return call

    def assert_follow(
        self, x, pattern, *, dy=None, weight=True, bias=True, residual=None,
        activation="none", center=True, ratio=0.0,
    ):  # fmt: skip
        """Output, statistics and gradients are those of the definition."""
        dy = sample(*x.shape, dtype=x.dtype, seed=3) if dy is None else dy
        weight = sample(x.shape[1], seed=1) if weight else None
        bias = sample(x.shape[1], seed=2) if bias else None
        given = (x, weight, bias, residual)
        y, statistics = self.normalize(*given, pattern, 1e-5, center, activation)
        found = self.normalize_backward(dy, *given, statistics, pattern, center, activation)

        wide = [None if t is None else t.detach().double().requires_grad_() for t in given]
        expected = reference.normalize(
            wide[0], pattern, *wide[1:3], residual=wide[3], activation=activation, center=center
        )
        wanted = [t for t in wide if t is not None]
        gradients = iter(torch.autograd.grad(expected, wanted, dy.double()))
        assert y.dtype == x.dtype
        assert y.stride() == torch.empty_like(x).stride()
        assert_within(y, expected, ratio=ratio)
        for actual, moment in zip(statistics, reference.moments(x, pattern, center=center)):
            assert actual.dtype == torch.float32
            assert_within(actual, moment, ratio=ratio)
        for source, actual in zip(wide, found):
            if source is not None and actual is not None:
                assert_within(actual, next(gradients), ratio=ratio)
        assert (found[3] is not None) == (residual is not None and activation != "none")
