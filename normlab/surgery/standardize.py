"""Weight standardization: convolutions whose filters have mean 0 and variance 1."""

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from normlab import functional
from normlab import pattern as patterns
from normlab.checks import check_eps
from normlab.surgery.batches import bare
from normlab.surgery.layers import Site, SurgeryError, Where, matches, show_leaves, sites

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

    def __init__(self, pattern: str = "o i ... -> o", *, eps: float = 1e-5) -> None:
        super().__init__()
        check_eps(eps)
        self.pattern = pattern
        self.eps = eps

    def forward(self, weight: Tensor) -> Tensor:
        return functional.normalize(weight, self.pattern, eps=self.eps)

    def extra_repr(self) -> str:
        return f'"{self.pattern}", eps={self.eps:g}'


def weight_standardize(
    model: nn.Module, *, where: Where | None = None, eps: float = 1e-5
) -> nn.Module:
    """Standardize the weight of every convolution, and return the model.

    y = conv(x, (w - mean) / sqrt(var + eps)),   one mean and variance per filter

    A parametrization of torch's: `parametrize.remove_parametrizations(layer, "weight")` takes it
    off, and the model is saved as a state_dict, where w is "parametrizations.weight.original". What
    the network computes changes; a norm in training takes up the new scale of its channels, but
    running statistics must be made anew (`normlab.calibrate`) and the network trained on.

    Args:
        where: names as a glob ("layer1.*"), or a predicate of (name, layer); None is every one.
        eps: added to the variance; 1e-5 as in the paper. timm's StdConv2d is this with 1e-6, its
            ScaledStdConv2d this with 1e-6, times gain / sqrt(values per filter).

    Raises:
        SurgeryError: no convolution, one value per filter, or a weight that something else makes;
            all such layers are named, and the model is unchanged.

    Source: Qiao et al. 2019, https://arxiv.org/abs/1903.10520, eq. 7 to 9.

    >>> conv = weight_standardize(nn.Conv2d(3, 8, 3))
    >>> conv.weight.mean((1, 2, 3)).abs().max().item() < 1e-6
    True
    """
    check_eps(eps)
    network = bare(model, "standardize")
    convolutions = sites(network, lambda layer: isinstance(layer, _ConvNd))
    found = [site for site in convolutions if matches(site, where)]
    if not found:
        chosen = f" where {where!r}" if where is not None else ""
        raise SurgeryError(
            f"0 of {len(convolutions)} convolutions matched{chosen}; it has {show_leaves(network)}"
        )
    problems = [f"  {s.names[0]}: {why}" for s in found if (why := _problem(s))]
    if problems:
        raise SurgeryError(
            f"{len(problems)} of {len(found)} convolutions cannot be standardized; "
            "leave them out with where=:\n" + "\n".join(problems)
        )
    for site in found:
        layer: Any = site.layer
        made = WeightStandardization(_pattern(layer), eps=eps)
        parametrize.register_parametrization(layer, "weight", made)
        layer.parametrizations.train(layer.training)
    return model


def _pattern(conv: Any) -> str:
    """A transposed convolution has its inputs first, and the outputs of each group anew."""
    if isinstance(conv, _ConvTransposeNd):
        return patterns.bind("(g i) o ... -> g o", g=conv.groups)
    return "o i ... -> o"


def _problem(site: Site) -> str:
    """Why a convolution cannot be standardized; empty if it can."""
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
    if (count := patterns.geometry(_pattern(layer), weight.shape).count) < 2:
        shape = patterns.show(weight.shape)
        return f"has {count} value per filter (weight {shape}), which would become 0"
    return ""
