"""The cases of `conformance.py`: each asked of torch and of normlab in the same words.

`call(nn, F)` gets the modules, either's, and returns what was found, what the definition in float64
says, and the bound of the error; None is a bare success. A case that `refuses` must raise.
"""

import functools
import io
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normlab import reference

BATCH, LAYER, INSTANCE, GROUPS = (
    "n c ... -> c",
    "n c ... -> n",
    "n c ... -> n c",
    "n (g=2 c) ... -> n g",
)
PATTERNS = {"batch": BATCH, "layer": LAYER, "instance": INSTANCE, "group": GROUPS}
X = (4, 6, 9, 9)
LAST = torch.channels_last
Found = tuple[Tensor, Tensor, float]  # actual, expected, bound of the largest error


class Case(NamedTuple):
    """An id of the tests, what is promised, and how it is asked."""

    id: str
    claim: str
    call: Callable[[Any, Any], Found]
    refuses: bool = False


def sample(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def norm(F: Any, kind: str, x: Tensor, *, eps: float = 1e-5) -> Tensor:
    """The function of a name, over all axes after the first for layer norm, in two groups."""
    match kind:
        case "batch":
            return F.batch_norm(x, None, None, training=True, eps=eps)
        case "layer":
            return F.layer_norm(x, x.shape[1:], eps=eps)
        case "instance":
            return F.instance_norm(x, eps=eps)
    return F.group_norm(x, 2, eps=eps)


def bound(expected: Tensor, dtype: torch.dtype, ratio: float = 0.0) -> float:
    """As the tests': 128 roundings (6 of 16 bits) and 8 for each unit of mean/std."""
    multiple = 6 if dtype.itemsize == 2 else 512 if dtype.itemsize == 8 else 128
    size = expected[expected.isfinite()].abs().max().item() if expected.numel() else 0.0
    return (multiple + 8 * ratio) * torch.finfo(dtype).eps * size


def output(kind: str, x: Tensor, ratio: float = 0.0, eps: float = 1e-5) -> Callable:
    def call(nn: Any, F: Any) -> Found:
        truth = reference.normalize(x, PATTERNS[kind], eps=eps)
        return norm(F, kind, x, eps=eps), truth, bound(truth, x.dtype, ratio)

    return call


def gradient(kind: str, x: Tensor, ratio: float = 0.0, dy: Tensor | None = None) -> Callable:
    dy = sample(*x.shape, seed=3).to(x.dtype) if dy is None else dy

    def call(nn: Any, F: Any) -> Found:
        given, wide = x.detach().requires_grad_(), x.detach().double().requires_grad_()
        (actual,) = torch.autograd.grad(norm(F, kind, given), given, dy)
        truth = reference.normalize(wide, PATTERNS[kind])
        (expected,) = torch.autograd.grad(truth, wide, dy.double())
        return actual, expected, bound(expected, x.dtype, ratio)

    return call


def offsets() -> list[Case]:
    """N1, with B02 and B04."""
    x = sample(2, 8, 16, 16) + 1000
    found = []
    for name, given in (("contiguous", x), ("channels-last", x.contiguous(memory_format=LAST))):
        for kind in PATTERNS:
            claim = f"{kind} norm, mean 1000 × std, {name}"
            found += [
                Case("N1", f"{claim}: output", output(kind, given, 1e3)),
                Case("N1", f"{claim}: gradient of x", gradient(kind, given, 1e3)),
            ]
    bad = sample(2, 4, 9, 9)
    for dtype, mean, std in ((torch.float32, 1449, 0.5), (torch.bfloat16, 5, 0.1)):
        given = (bad * std + mean).to(dtype)
        name = str(dtype).removeprefix("torch.")
        found += [
            Case("P15", f"{k} norm, mean {mean}, std {std}, {name}", output(k, given, mean / std))
            for k in PATTERNS
        ]
    return found


def constants() -> list[Case]:
    """N2 and N3: what is exactly 0."""
    found = []
    for value, dtype in ((3.3, torch.float32), (1e7, torch.float32), (1e7, torch.bfloat16)):
        x = torch.full(X, value, dtype=dtype)
        name = str(dtype).removeprefix("torch.")
        for kind in PATTERNS:
            call = exactly_zero(functools.partial(norm, kind=kind, x=x))
            found.append(
                Case("N2", f"{kind} norm of the constant {value:g}, {name}: exactly 0", call)
            )
    x = torch.full(X, 3.3).contiguous(memory_format=LAST)
    call = exactly_zero(lambda F: F.group_norm(x, 2))
    found.append(Case("N2", "group norm of the constant 3.3, channels-last: exactly 0", call))
    one = sample(4, 6, 1, 1) * 1e3
    call = exactly_zero(lambda F: F.group_norm(one, 6))
    found.append(Case("N3", "group norm, one value per group: exactly 0", call))
    call = exactly_zero(lambda F: weight_gradient(F, sample(5, 1) * 1e6))
    found.append(Case("N3", "layer norm, one value each: gradient of weight exactly 0", call))
    return found


def exactly_zero(what: Callable[[Any], Tensor]) -> Callable:
    def call(nn: Any, F: Any) -> Found:
        y = what(F)
        return y, torch.zeros(y.shape), 0.0

    return call


def weight_gradient(F: Any, x: Tensor) -> Tensor:
    weight = torch.ones(1, requires_grad=True)
    (found,) = torch.autograd.grad(F.layer_norm(x, (1,), weight).sum(), weight)
    return found


def ranges() -> list[Case]:
    """N5 to N8, N18, P20: tiny, huge and bad values."""
    found = []
    for kind in PATTERNS:
        for size in (1e-20, 1e-40):
            call = output(kind, sample(*X) * size, eps=1e-12)
            found.append(Case("N5", f"{kind} norm of values of {size:g}, eps 1e-12", call))
        for size in (1e15, 1e30):
            found.append(
                Case("N6", f"{kind} norm of values of {size:g}", output(kind, sample(*X) * size))
            )
        found.append(Case("N7", f"{kind} norm: NaN spoils its group and no other", spoiled(kind)))
        half = (sample(*X) * 2e4).clamp(-6e4, 6e4).half()
        found.append(Case("P20", f"{kind} norm of float16 up to 60000", output(kind, half)))
        fine = 1 + 1e-9 * sample(*X, dtype=torch.float64)
        call = output(kind, fine, 1e9, eps=1e-30)
        found.append(Case("N18", f"{kind} norm of float64, std 1e-9 of the mean", call))
        call = output(kind, sample(1, 6, 301, 100) + 10, 10)
        found.append(Case("N8", f"{kind} norm of large groups", call))
    return found


def spoiled(kind: str) -> Callable:
    x = sample(*X)
    x[1, 2, 3, 4] = float("nan")
    return output(kind, x)


def layouts() -> list[Case]:
    """N12 to N15: strides, formats, and whose memory is whose."""
    x, dy = sample(*X), sample(*X, seed=3)
    views = {
        "transposed": x.transpose(2, 3), "expanded": x[:1].expand_as(x), "flipped": x.flip(-1),
        "every second": x.repeat_interleave(2, -1)[..., ::2],
    }  # fmt: skip
    found = []
    for kind in PATTERNS:
        found += [
            Case("N12", f"{kind} norm, {name} memory", output(kind, view))
            for name, view in views.items()
        ]
        mixed = gradient(kind, x, dy=dy.contiguous(memory_format=LAST))
        found.append(Case("B18", f"{kind} norm: gradient given as channels-last", mixed))
        wide = gradient(kind, x, dy=dy[:1, :1, :1].expand(X))
        found.append(Case("N13", f"{kind} norm: gradient given as an expanded row", wide))
        if kind != "layer":
            found.append(Case("N14", f"{kind} norm keeps channels-last", keeps_format(kind)))
    return found


def keeps_format(kind: str) -> Callable:
    def call(nn: Any, F: Any) -> Found:
        y = norm(F, kind, sample(*X).contiguous(memory_format=LAST))
        return holds(y.is_contiguous(memory_format=LAST))

    return call


def holds(*conditions: bool) -> Found:
    """1 for each that is true, and wanted."""
    found = torch.tensor([float(bool(c)) for c in conditions])
    return found, torch.ones_like(found), 0.0


def isolated(kind: str) -> Callable:
    def call(nn: Any, F: Any) -> Found:
        x = sample(*X)
        alone = torch.cat([norm(F, kind, one) for one in x.split(1)])
        return norm(F, kind, x), alone, 0.0

    return call


def repeatable(kind: str) -> Callable:
    """The same bits on one thread and on two."""

    def call(nn: Any, F: Any) -> Found:
        x = sample(8, 6, 64, 64) + 3
        before, found = torch.get_num_threads(), []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            given = x.clone().requires_grad_()
            y = norm(F, kind, given)
            found.append(torch.autograd.grad(y, given, sample(*x.shape, seed=3))[0])
        torch.set_num_threads(before)
        return found[0], found[1], 0.0

    return call


def derivatives() -> list[Case]:
    """N24: third derivatives, and jvp of jvp."""
    found = []
    for kind in PATTERNS:
        found += [
            Case("N24", f"{kind} norm: jvp of jvp", twice(kind)),
            Case("N24", f"{kind} norm: third derivative", thrice(kind)),
            Case("N33", f"{kind} norm: a sample alone has the same bits", isolated(kind)),
            Case("N32", f"{kind} norm: gradient, same bits on 1 and 2 threads", repeatable(kind)),
        ]
    return [case for case in found if (case.id, case.claim[:5]) != ("N33", "batch")]


def twice(kind: str) -> Callable:
    x, first, second = (sample(3, 4, 5, seed=seed, dtype=torch.float64) for seed in range(3))

    def along(function: Callable) -> Tensor:
        jvp = torch.func.jvp
        return jvp(lambda x: jvp(function, (x,), (first,))[1], (x,), (second,))[1]

    def call(nn: Any, F: Any) -> Found:
        truth = along(lambda x: reference.normalize(x, PATTERNS[kind]))
        return along(lambda x: norm(F, kind, x)), truth, bound(truth, x.dtype)

    return call


def thrice(kind: str) -> Callable:
    start = sample(3, 4, 5, dtype=torch.float64)

    def third(function: Callable) -> Tensor:
        x = start.clone().requires_grad_()
        value = function(x).exp().sum()
        for seed in range(3):
            (dx,) = torch.autograd.grad(value, x, create_graph=True)
            value = (dx * sample(*x.shape, seed=seed, dtype=x.dtype)).sum()
        return dx.detach()

    def call(nn: Any, F: Any) -> Found:
        truth = third(lambda x: reference.normalize(x, PATTERNS[kind]))
        return third(lambda x: norm(F, kind, x)), truth, bound(truth, start.dtype)

    return call


def scripted(nn: Any, F: Any) -> Found:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = torch.jit.script(nn.GroupNorm(2, 6))
    truth = reference.normalize(sample(*X), GROUPS)
    return layer(sample(*X)), truth, bound(truth, torch.float32)


def round_trip(nn: Any, F: Any) -> Found:
    layer, file = nn.BatchNorm2d(6), io.BytesIO()
    layer(sample(*X))
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = torch.nn.BatchNorm2d(6)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    truth = reference.moments(sample(*X), BATCH)[0] * 0.1
    return other.get_buffer("running_mean"), truth, bound(truth, torch.float32)
