"""Norms of weights: parametrizations of a model's convolutions and linear layers, by name.

    ws     weight standardization, of convolutions
    sws    scaled weight standardization, of convolutions
    wn     weight norm, of convolutions and linear layers
    sn     spectral norm, of the same

`NORMS` has a row for each; `reparametrize` puts one on a model.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrizations, parametrize

from normlab import functional
from normlab import pattern as patterns
from normlab.checks import check_eps, check_whole
from normlab.surgery.batches import bare
from normlab.surgery.layers import Site, SurgeryError, Where, matches, show_leaves, sites

PER_FILTER = "o i ... -> o"
# classes that standardize in their own forward, with conventions of their own
_ALREADY = ("timm.layers.std_conv.", "timm.models.layers.std_conv.")


class WeightStandardization(nn.Module):
    """A parametrization that gives every filter mean 0 and variance 1.

    y = (w - mean) / sqrt(var + eps),   statistics "o i ... -> o", variance biased

    Args:
        pattern: over what the weight is normalized, sizes written in.
        eps: added to the variance, so in squared units of the weight.

    Shape: that of the weight, (O, I/groups, ...), or (I, O/groups, ...) of a transposed
    convolution.
    """

    def __init__(self, pattern: str = PER_FILTER, *, eps: float = 1e-5) -> None:
        super().__init__()
        check_eps(eps)
        self.pattern = pattern
        self.eps = eps

    def forward(self, weight: Tensor) -> Tensor:
        return functional.normalize(weight, self.pattern, eps=self.eps)

    def extra_repr(self) -> str:
        return f'"{self.pattern}", eps={self.eps:g}'


class ScaledWeightStandardization(WeightStandardization):
    """A parametrization that gives every filter mean 0 and a learned norm, 1 at first.

    y = gain * (w - mean) / sqrt(var + eps) / sqrt(fan_in),   statistics "o i ... -> o"

    Args:
        weight: (O, I/groups, ...); says how many filters there are, their device and type, and
            whether they learn.
        pattern, eps: as in `WeightStandardization`.
        gain: at the start, of every filter.

    Shape: that of the weight.
    """

    def __init__(
        self, weight: Tensor, pattern: str = PER_FILTER, *, eps: float = 1e-5, gain: float = 1.0
    ) -> None:
        super().__init__(pattern, eps=eps)
        filters = patterns.product(patterns.geometry(pattern, weight.shape).statistics)
        start = weight.detach().new_full((filters,), gain)
        self.gain = nn.Parameter(start, requires_grad=weight.requires_grad)

    def forward(self, weight: Tensor) -> Tensor:
        geometry = patterns.geometry(self.pattern, weight.shape)
        scale = (self.gain * geometry.count**-0.5).reshape(geometry.broadcast)
        y = super().forward(weight).reshape(geometry.split)
        return (y * scale).reshape(weight.shape)


def standardize(layer: Any, *, eps: float = 1e-5) -> None:
    """Weight standardization: every filter has mean 0 and variance 1.

    w = (v - mean) / sqrt(var + eps),   statistics "o i ... -> o", variance biased

    The output scale of the layer follows from its inputs alone, so it wants a norm after it: group
    norm, in the paper. timm's StdConv2d is this with eps=1e-6.

    Args:
        eps: added to the variance, so in squared units of the weight; 1e-5 as in the paper.

    Source: Qiao et al. 2019, https://arxiv.org/abs/1903.10520, eq. 7 to 9.

    >>> conv = reparametrize(nn.Conv2d(3, 8, 3), "ws")
    >>> conv.weight.mean((1, 2, 3)).abs().max().item() < 1e-6
    True
    """
    _put(layer, WeightStandardization(filters_of(layer), eps=eps))


def standardize_scaled(layer: Any, *, eps: float = 1e-5, gain: float = 1.0) -> None:
    """Scaled weight standardization: every filter has mean 0 and a learned norm.

    w = gain * (v - mean) / sqrt(var + eps) / sqrt(fan_in),   statistics "o i ... -> o"

    `gain` is a parameter (O,) of the layer, `fan_in` the values of a filter. At gain 1 a layer
    keeps the variance of independent inputs of mean 0, so that networks do without other norms.
    timm's ScaledStdConv2d is this with eps=1e-6.

    Args:
        eps: added to the variance, so in squared units of the weight.
        gain: at the start; sqrt(2 / (1 - 1/pi)) makes up for a ReLU, as in the paper.

    Source: Brock et al. 2021, https://arxiv.org/abs/2101.08692.

    >>> import torch
    >>> conv = reparametrize(nn.Conv2d(3, 8, 3), "sws")
    >>> torch.allclose(conv.weight.flatten(1).norm(dim=1), torch.ones(8), atol=1e-2)
    True
    """
    made = ScaledWeightStandardization(layer.weight, filters_of(layer), eps=eps, gain=gain)
    _put(layer, made)


def weight_norm(layer: Any) -> None:
    """Weight norm: the length of every filter is a parameter, apart from its direction.

    w = g * v / |v|,   length per filter "o i ... -> o"

    g (O, 1, ...) starts at |v|, so that the layer computes what it did. The norm is not over data
    and has no mean; torch's weight_norm does it.

    Source: Salimans and Kingma 2016, https://arxiv.org/abs/1602.07868, eq. 2.

    >>> import torch
    >>> linear = nn.Linear(3, 8)
    >>> before = linear.weight.clone()
    >>> torch.allclose(reparametrize(linear, "wn").weight, before)
    True
    """
    # of a transposed convolution, filters are along the second axis
    parametrizations.weight_norm(layer, "weight", dim=int(isinstance(layer, _ConvTransposeNd)))


def spectral_norm(layer: Any, *, num_iterations: int = 1, eps: float = 1e-12) -> None:
    """Spectral norm: the weight as a matrix has largest singular value 1.

    w = v / sigma,   sigma = max |V h| / |h|,   V = v as (O, values of a filter)

    sigma is followed by power iteration: each training step continues from the vectors of the last
    one, which are buffers of the layer. torch's spectral_norm does it.

    Args:
        num_iterations: of the power method, each time the weight is used in training.
        eps: smallest length of the vectors.

    Source: Miyato et al. 2018, https://arxiv.org/abs/1802.05957, eq. 8.

    >>> import torch
    >>> linear = reparametrize(nn.Linear(6, 8), "sn", num_iterations=20).double()
    >>> round(torch.linalg.matrix_norm(linear.weight, 2).item(), 2)
    1.0
    """
    parametrizations.spectral_norm(layer, "weight", num_iterations, eps)


@dataclass(frozen=True)
class WeightNorm:
    """A row of `NORMS`.

    Args:
        put: puts it on one layer; its docstring explains it, its keywords are the options.
        pattern: what of a weight shares one number.
        what: that is.
        layers: what they are called, and their classes.
        problem: why a layer that could have other norms cannot have this one; empty if it can.
    """

    put: Callable[..., None]
    pattern: str
    what: str
    layers: str
    classes: tuple[type[nn.Module], ...]
    problem: Callable[[Any, nn.Module], str]

    @property
    def title(self) -> str:
        """Such as "weight norm"."""
        first = (inspect.getdoc(self.put) or "").partition(":")[0]
        return first[:1].lower() + first[1:]


def reparametrize(
    model: nn.Module, name: str, *, where: Where | None = None, **options: Any
) -> nn.Module:
    """Put a norm of weights on the layers of a model, and return the model.

    A parametrization of torch's: `parametrize.remove_parametrizations(layer, "weight")` takes it
    off, and the model is saved as a state_dict. What the network computes changes, but for "wn"; a
    norm in training takes up the new scale of its channels, but running statistics must be made
    anew (`normlab.calibrate`) and the network trained on. Some have parameters of their own, so
    make the optimizer after.

    Args:
        name: "ws", "sws", "wn" or "sn"; `normlab norms ws` explains it.
        where: names as a glob ("layer1.*"), or a predicate of (name, layer); None is every
            convolution, and for "wn" and "sn" every linear layer.
        options: ws: eps; sws: eps, gain; sn: num_iterations, eps.

    Raises:
        LookupError: no norm is called like that.
        TypeError, ValueError: an option that it lacks, or of a value it cannot have.
        SurgeryError: no layer, or one that cannot have it; all such layers are named, and the model
            is unchanged.

    >>> model = reparametrize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(2, 2)), "ws")
    >>> [parametrize.is_parametrized(layer) for layer in model]
    [True, False]
    """
    row = row_of(name)
    _check_options(name, row, options)
    network = bare(model, "reparametrize")
    able = sites(network, lambda layer: isinstance(layer, row.classes))
    found = [site for site in able if matches(site, where)]
    if not found:
        chosen = f" where {where!r}" if where is not None else ""
        raise SurgeryError(
            f"0 of {len(able)} {row.layers} matched{chosen}; it has {show_leaves(network)}"
        )
    problems = [f"  {s.names[0]}: {why}" for s in found if (why := _problem(s, row, network))]
    if problems:
        raise SurgeryError(
            f"{len(problems)} of {len(found)} {row.layers} cannot take {row.title}; "
            "leave them out with where=:\n" + "\n".join(problems)
        )
    for site in found:
        row.put(site.layer, **options)
        site.layer.parametrizations.train(site.layer.training)  # type: ignore[union-attr,operator]
    return model


def row_of(name: str) -> WeightNorm:
    """The row of a name.

    Raises:
        LookupError: there is none.
    """
    if name not in NORMS:
        titles = ", ".join(f"{key} ({row.title})" for key, row in NORMS.items())
        raise LookupError(f"norm of weights {name!r}: there are {titles}")
    return NORMS[name]


def filters_of(layer: Any) -> str:
    """What a filter of a layer is; a transposed convolution has its inputs first.

    >>> filters_of(nn.ConvTranspose2d(4, 6, 3, groups=2))
    '(g=2 i) o ... -> g o'
    """
    if isinstance(layer, _ConvTransposeNd):
        return patterns.bind("(g i) o ... -> g o", g=layer.groups)
    return PER_FILTER


def _put(layer: Any, made: nn.Module) -> None:
    parametrize.register_parametrization(layer, "weight", made)


def _check_options(name: str, row: WeightNorm, options: dict[str, Any]) -> None:
    known = list(inspect.signature(row.put).parameters)[1:]
    for key in options:
        if key not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise TypeError(f"{name!r} has no option {key!r}; {has}")
    if "eps" in options:
        check_eps(options["eps"])
    if "num_iterations" in options:
        check_whole("num_iterations", options["num_iterations"])
        if options["num_iterations"] < 1:
            raise ValueError(f"num_iterations must be at least 1, got {options['num_iterations']}")
    gain = options.get("gain", 1.0)
    if not isinstance(gain, int | float) or not math.isfinite(gain):
        raise ValueError(f"gain must be a number, got {gain!r}")


def _problem(site: Site, row: WeightNorm, model: nn.Module) -> str:
    """Why a layer cannot have a norm of its weight; empty if it can."""
    layer: Any = site.layer
    if type(layer).__module__.startswith("torch.ao."):
        return "is quantized; do this before quantizing"
    if f"{type(layer).__module__}.{type(layer).__name__}".startswith(_ALREADY):
        return f"is a {type(layer).__name__}, which standardizes itself"
    if parametrize.is_parametrized(layer, "weight"):
        made = ", ".join(type(p).__name__ for p in layer.parametrizations.weight)
        return f"its weight is parametrized by {made}; remove that first"
    weight = layer._parameters.get("weight")
    if weight is None:
        return "its weight is no parameter but made by a hook, such as weight_norm; remove it first"
    if is_lazy(weight):
        return "has no size yet; run one batch first"
    return row.problem(layer, model)


def _no_variance(layer: Any, model: nn.Module) -> str:
    shape = layer.weight.shape
    if (count := patterns.geometry(filters_of(layer), shape).count) < 2:
        return f"has {count} value per filter (weight {patterns.show(shape)}), which would become 0"
    return ""


def _no_length(layer: Any, model: nn.Module) -> str:
    axis = 1 if isinstance(layer, _ConvTransposeNd) else 0
    if axis and layer.groups > 1:
        return (
            f"is transposed with {layer.groups} groups, whose filters torch's weight_norm would "
            "give one length together"
        )
    owners = [
        name for name, module in model.named_modules()
        if module is not layer and module._parameters.get("weight") is layer.weight
    ]  # fmt: skip
    if owners:
        return f"its weight is tied to that of {owners[0]}, and v and g would not be; untie it"
    weight = layer.weight.detach()
    empty = 0 if weight.is_meta else int((weight.transpose(0, axis).flatten(1) == 0).all(1).sum())
    if empty:
        return f"has {empty} filters of zeros, which have no direction; fill them first"
    return ""


def _no_sigma(layer: Any, model: nn.Module) -> str:
    weight = layer.weight.detach()
    if not weight.is_meta and not weight.any():
        return "has a weight of zeros, whose sigma is 0; fill it first"
    return ""


_CONVOLUTIONS = ("convolutions", (_ConvNd,))
_MOMENTS = "one mean and variance"
_BOTH = ("convolutions and linear layers", (_ConvNd, nn.Linear))

NORMS: dict[str, WeightNorm] = {
    "ws": WeightNorm(standardize, PER_FILTER, _MOMENTS, *_CONVOLUTIONS, _no_variance),
    "sws": WeightNorm(standardize_scaled, PER_FILTER, _MOMENTS, *_CONVOLUTIONS, _no_variance),
    "wn": WeightNorm(weight_norm, PER_FILTER, "one length", *_BOTH, _no_length),
    "sn": WeightNorm(spectral_norm, "o i ... ->", "one singular value", *_BOTH, _no_sigma),
}
