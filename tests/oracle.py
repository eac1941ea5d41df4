"""What tests compare with: one bound for errors, and every layer's definition in float64."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import definitions_batch
import definitions_sample
import torch
from definitions import one_pattern
from torch import Tensor

from normlab import functional, norms, reference
from normlab import pattern as patterns
from normlab.layer import Norm

# multiples of the machine epsilon an error may have
K = {torch.float64: 512, torch.float32: 128, torch.bfloat16: 6, torch.float16: 6}


def assert_within(
    actual: Tensor,
    expected: Tensor,
    *,
    dtype: torch.dtype | None = None,
    ratio: float = 0.0,
    size: float | None = None,
) -> None:
    """|actual - expected| <= (K + 8·ratio) · eps · (|expected| + size), and NaN where expected.

    Args:
        dtype: the type whose precision is asked for; None is that of `actual`.
        ratio: mean/std of the input.
        size: what the values are made of, where they cancel; None is the largest expected one.
    """
    assert actual.shape == expected.shape
    dtype = dtype or actual.dtype
    actual, expected = actual.detach().double(), expected.detach().double()
    assert torch.equal(actual.isnan(), expected.isnan()), "NaN in other places"
    finite = expected[expected.isfinite()].abs()
    if size is None:
        size = finite.max().item() if finite.numel() else 0.0
    bound = (K[dtype] + 8 * ratio) * torch.finfo(dtype).eps * (expected.abs() + size)
    error = (actual - expected).abs()
    wrong = ~((error <= bound) | (actual == expected) | expected.isnan())
    worst = torch.where(wrong, error, 0).max().item() if wrong.any() else 0.0
    assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()} wrong, by up to {worst:.3g}"


def definition(layer: Norm, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """What a layer computes, in float64: its equation, executed literally."""
    return _COMPOSED.get(layer.name, one_pattern)(layer, x, residual)


_COMPOSED = {**definitions_batch.DEFINITIONS, **definitions_sample.DEFINITIONS}


NUM_CHANNELS = 6
SHAPES = {
    rank: (4, NUM_CHANNELS, *rest)
    for rank, rest in enumerate([(), (5,), (3, 5), (2, 3, 4), (2, 3, 2, 2)], start=2)
}
# every name once; norms of groups in groups, batch norm also in slices
_SIZED = {
    "group": "group:2",
    "ghost_batch": "ghost_batch:2",
    "batch_group": "batch_group:2",
    "batch_channel": "batch_channel:2",
    "evonorm_s0": "evonorm_s0:2",
}
SPECS = [_SIZED.get(name, name) for name in norms.available()] + ["batch:n=2"]
OURS = [spec for spec in SPECS if spec != "torch_bn"]
# one value per statistic at rank 2
NEEDS_POSITIONS = {"instance", "batch_instance", "switchable"}
NO_PARAMETERS = {"none", "frozen_batch"}  # so there are no gradients but that of x
# what depends on x is a constant in the backward pass, and no difference of values tells it so
HAS_CONSTANTS = {"batch_renorm"}
# its running variance is of distances from the running mean: right for batches of one
TRACKS_ITS_OWN_WAY = {"batch_channel:2"}


def make(spec: str, num_channels: int = NUM_CHANNELS, **options: Any) -> Norm:
    """A layer whose parameters and running statistics are no longer those of a new one."""
    layer = norms.norm(spec, num_channels, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*layer.parameters(), *layer.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.8 + 0.1)
    return layer


def sample(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal values, the same in every process."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def per_channel(statistic: Tensor, pattern: str, shape: tuple[int, ...]) -> Tensor:
    """What running statistics take of a batch's: means over slices, repeats within groups."""
    geometry = patterns.geometry(pattern, shape)
    spread = statistic.reshape(geometry.broadcast).expand(geometry.split).reshape(shape)
    return spread.transpose(0, 1).flatten(1).mean(1)


def double(layer: Norm) -> Norm:
    """A copy whose parameters are float64, with gradients of its own."""
    twin = copy.deepcopy(layer).double()
    twin.zero_grad()
    return twin


def assert_follows_the_definition(
    layer: Norm, x: Tensor, dy: Tensor, residual: Tensor | None = None
) -> None:
    """Output and all gradients, within the precision of x."""
    twin = copy.deepcopy(layer).double()
    found = []
    for module, dtype in ((layer, x.dtype), (twin, torch.float64)):
        given = [t.detach().to(dtype).requires_grad_() for t in (x, residual) if t is not None]
        y = module(*given) if module is layer else definition(module, *given)
        wanted = [*given, *module.parameters()]
        found.append([y, *torch.autograd.grad(y, wanted, dy.to(dtype))])
    assert found[0][0].dtype == x.dtype
    for actual, expected in zip(*found):
        assert_within(actual, expected, dtype=x.dtype)


def both_ways(
    x: Tensor,
    pattern: str,
    eps: float = 1e-5,
    memory_format: torch.memory_format = torch.contiguous_format,
    **options: Any,
) -> Iterator[tuple[Tensor, ...]]:
    """Output and gradients by x, weight and bias: ours, then the definition's."""
    x = x.to(memory_format=memory_format)
    weight, bias, dy = (
        sample(x.shape[1], seed=1),
        sample(x.shape[1], seed=2),
        sample(*x.shape, seed=3),
    )
    for normalize, dtype in ((functional.normalize, x.dtype), (reference.normalize, torch.float64)):
        inputs = [t.detach().to(dtype).requires_grad_() for t in (x, weight, bias)]
        y = normalize(inputs[0], pattern, *inputs[1:], eps=eps, **options)
        yield y, *torch.autograd.grad(y, inputs, dy.to(dtype))


def assert_all_within(x: Tensor, pattern: str, *, ratio: float = 0.0, **options: Any) -> None:
    """Output and gradients of `normalize` follow the definition."""
    for actual, expected in zip(*both_ways(x, pattern, **options)):
        assert_within(actual, expected, ratio=ratio)


def gradients(
    y: Tensor, dy: Tensor, x: Tensor, layer: torch.nn.Module
) -> Iterator[tuple[str, Tensor]]:
    """Gradients of y by x and by the layer's parameters, with their names."""
    names, parameters = zip(("x", x), *layer.named_parameters())
    yield from zip(names, torch.autograd.grad(y, parameters, dy))


# the same values seen with other strides; x is (4, 6, 3, 5)
STRIDED: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "expanded samples": lambda x: x[:1].expand_as(x),
    "expanded channels": lambda x: x[:, :1].expand_as(x),
    "expanded width": lambda x: x[..., :1].expand_as(x),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "channels before samples": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "every second": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "flipped then narrowed": lambda x: torch.cat([x, x], -1).flip(-1).narrow(-1, 1, x.shape[-1]),
    "overlapping": lambda x: x.flatten().as_strided(x.shape, (6, 5, 2, 1)),
    "offset storage": lambda x: torch.cat([x[:1], x])[1:],
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "sliced channels_last": lambda x: torch.cat([x, x], 1).to(memory_format=torch.channels_last)[
        :, 2:8
    ],
}
