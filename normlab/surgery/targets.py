"""The layer that takes a norm's place: how it is made, and what of the old one it keeps."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normlab import norms
from normlab.layer import Norm
from normlab.surgery.known import Known, Replaced, known, remember, replaced
from normlab.surgery.layers import SurgeryError
from normlab.surgery.moments import Match, channel_axes, match
from normlab.surgery.rules import (
    Followed,
    Reading,
    evaluates_as_pattern,
    is_as_still,
    is_one_pattern,
    read,
    same_statistics,
    synchronizes,
)
from normlab.surgery.shrunk import Shrunk

# what a new layer keeps of the old one, and what that means
RESTORED = "restored"
EXACT = "function"
MOMENTS = "moments"
AFFINE = "weight, bias"
NOTHING = "nothing"
MEANINGS = {
    RESTORED: "the layer that was here before the last conversion, and what was trained since",
    EXACT: "the same outputs in evaluation",
    MOMENTS: "weight and bias make up for the population moments of the new groups; by what a "
    "sample's own statistics differ from these cannot be known (strength=1 keeps all)",
    AFFINE: "as they are; more needs trained population statistics and keep='function'",
    NOTHING: "starts anew",
}

_PARAMETERS = ("weight", "bias")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Wish(NamedTuple):
    """What is asked for, of every layer."""

    spec: str
    keep: str
    strength: float | None
    options: dict[str, Any]


class Made(NamedTuple):
    """A new layer, not yet in the model, and which of the above it keeps."""

    layer: nn.Module
    keeps: str
    is_tied: bool = False  # which is why it keeps no more


def make(old: nn.Module, wish: Wish, like: Tensor | None, owners: Counter[int]) -> Made:
    """The new layer for an old one; the old one stays as it is.

    Args:
        like: gives type and device to layers that have no tensor of their own.
        owners: by the id of a parameter, under how many names it is in the model.

    Raises:
        ValueError: it cannot be made.
    """
    reading = _reading(old)
    source = known(old) if wish.keep == "function" else _as_it_is(old, reading)
    plain = _plain(reading, wish, source.eps, like)
    if wish.keep == "fresh":
        for name in _PARAMETERS:
            if (parameter := getattr(plain, name)) is not None:
                parameter.requires_grad_(_learns(reading.tensor(name)))
        return Made(_finished(plain, old, reading), NOTHING)
    origin = _origin(old, plain, wish)
    core: Any = plain if origin is None else _reading(origin).core
    found = _found(source, plain, core.eps, wish)
    changed = source[1:3] if found is None else found.apply(*source[1:3])
    if wish.keep == "function" and _is_tied(reading, changed, owners):
        return make(old, wish._replace(keep="affine"), like, owners)._replace(is_tied=True)
    if wish.strength is not None:
        core = _shrunk(plain, wish.strength, found, source.mean)
    room = _room(plain, wish)
    _fill(core, [t if fits else None for t, fits in zip(changed, room)], reading, like)
    if source.mean is not None and getattr(core, "running_mean", None) is not None:
        _copy_statistics(_reading(source.layer).core, core)
        if found is not None and not _has_statistics_of(source.layer, plain):
            _pool_statistics(found, plain, core)
    if any(t is not None and not fits for t, fits in zip(changed, room)):
        return Made(_finished(core, old, reading), NOTHING)
    if origin is not None:
        _follow(core, _like(_reading(source.layer), None), _like(reading, None))
        origin.training = core.training = old.training
        remember(origin, None)
        return Made(origin, RESTORED)
    new = _finished(core, old, reading)
    remember(new, _past(old, source, core, found, wish))
    return Made(new, _keeps(reading, core, found, wish))


def _reading(layer: nn.Module) -> Reading:
    reading = read(layer)
    assert reading is not None
    return reading


def _as_it_is(old: nn.Module, reading: Reading) -> Known:
    weight, bias, mean, var = (reading.tensor(n) for n in (*_PARAMETERS, *_STATISTICS[:2]))
    return Known(old, weight, bias, mean, var, reading.eps)


def _plain(reading: Reading, wish: Wish, eps: float, like: Tensor | None) -> Norm:
    """The norm of the catalogue, with places for weight and bias in their usual order."""
    is_fresh = wish.keep == "fresh"
    like = _like(reading, like)
    return norms.norm(
        wish.spec,
        reading.num_channels,
        **{
            "eps": eps,
            "momentum": reading.momentum,
            "affine": not is_fresh or reading.tensor("weight") is not None,
            "bias": not is_fresh or reading.tensor("bias") is not None,
            "activation": reading.activation,
            **({} if like is None else {"device": like.device, "dtype": like.dtype}),
            **wish.options,
        },
    )


def _room(plain: Norm, wish: Wish) -> tuple[bool, bool]:
    """Whether the new norm may have a weight, and a bias."""
    affine = plain.name != "none" and wish.options.get("affine", True)
    return affine, affine and wish.options.get("bias", True)


def _like(reading: Reading, like: Tensor | None) -> Tensor | None:
    own = (reading.tensor(n) for n in (*_PARAMETERS, "running_mean"))
    return next((t for t in own if t is not None), like)


def _origin(old: nn.Module, plain: Norm, wish: Wish) -> nn.Module | None:
    """A twin of what `old` replaced, if that is what is wanted again."""
    past = replaced(old)
    if past is None or wish.options or wish.strength is not None or not is_one_pattern(plain):
        return None
    if plain.synchronize and not synchronizes(past.layer):
        return None
    if not is_as_still(past.layer, plain):
        return None
    before = _reading(past.layer)
    now = _reading(old)
    wanted, left = (
        same_statistics(before.pattern, pattern, plain.num_channels)
        for pattern in (plain.pattern, now.pattern)
    )
    is_away = not left or now.strength is not None  # else it was another class that was wanted
    return _twin(past.layer) if wanted and is_away and is_one_pattern(before.core) else None


def _twin(layer: nn.Module) -> nn.Module:
    """The same layer twice: what is put into the one is not seen in the other."""
    new = type(layer).__new__(type(layer))
    vars(new).update(vars(layer))
    for name in ("_parameters", "_buffers", "_modules"):
        vars(new)[name] = vars(layer)[name].copy()
    if isinstance(layer, Followed):
        new._modules["0"] = _twin(layer[0])
    return new


def _found(source: Known, plain: Norm, new_eps: float, wish: Wish) -> Match | None:
    """Population moments under the new pattern, where they are known and wanted."""
    wanted = wish.strength is not None or wish.keep == "function"
    if source.mean is None or source.var is None or not wanted:
        return None
    if plain.name == "none" or not evaluates_as_pattern(plain):
        return None
    found = match(
        plain.pattern, source.mean, source.var, eps=source.eps, new_eps=new_eps,
        center=plain.center,
    )  # fmt: skip
    if wish.keep == "function":
        return found
    unchanged = torch.ones_like(found.scale), torch.zeros_like(found.shift)
    return Match(found.mean, found.var, *unchanged)


def _is_tied(reading: Reading, changed: tuple[Tensor | None, ...], owners: Counter[int]) -> bool:
    """Whether a parameter would change that others have too."""
    now = [reading.tensor(name) for name in _PARAMETERS]
    return any(owners[id(a)] > 1 for a, b in zip(now, changed) if a is not None and a is not b)


def _shrunk(plain: Norm, strength: float, found: Match | None, like: Tensor | None) -> Shrunk:
    if not is_one_pattern(plain):
        raise SurgeryError(f"{plain.name} norm is not one pattern, so it has no strength")
    if found is None or like is None:
        raise SurgeryError(
            "strength needs trained population statistics, and there are none: convert from a "
            "trained batch norm, or leave strength out"
        )
    new = Shrunk(
        plain.num_channels, plain.pattern, strength=strength, eps=plain.eps, affine=False,
        activation=plain.activation, device=like.device, dtype=like.dtype,
    )  # fmt: skip
    new.population_mean.copy_(found.mean)
    new.population_var.copy_(found.var)
    return new


def _fill(
    core: Any, values: Sequence[Tensor | None], reading: Reading, like: Tensor | None
) -> None:
    """Weight and bias: parameters themselves where they are unchanged, else new ones."""
    place: Any = _like(reading, like)
    weight, bias = values
    if weight is None and bias is not None:  # no norm has a bias alone
        weight = torch.ones_like(bias)
    for name, value in zip(_PARAMETERS, (weight, bias)):
        learns = _learns(reading.tensor(name))
        is_same = (
            isinstance(value, nn.Parameter)
            and value.requires_grad == learns
            and (value.device, value.dtype) == (place.device, place.dtype)
        )
        if value is not None and not is_same:
            value = value.detach().to(place.device, place.dtype, copy=True)
            value = value if name in core._buffers else nn.Parameter(value, requires_grad=learns)
        setattr(core, name, value)


def _follow(core: Any, then: Tensor | None, now: Tensor | None) -> None:
    """Statistics moved to the device and type the model was moved to since."""
    if then is None or now is None or (then.device, then.dtype) == (now.device, now.dtype):
        return
    for name in _STATISTICS:
        if (value := getattr(core, name, None)) is not None:
            is_count = not value.is_floating_point()
            core._buffers[name] = value.to(now.device, value.dtype if is_count else now.dtype)


def _learns(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad


def _copy_statistics(old: Any, new: Any) -> None:
    for name in _STATISTICS:
        value, now = getattr(old, name, None), getattr(new, name, None)
        if value is not None and now is not None and value is not now:
            # a buffer of its own: the layer may be a twin
            new._buffers[name] = value.to(now.device, now.dtype, copy=True)


def _has_statistics_of(layer: nn.Module, plain: Norm) -> bool:
    """Whether a layer's running statistics are what the new norm keeps."""
    old = _reading(layer)
    return plain.center and same_statistics(old.pattern, plain.pattern, plain.num_channels)


def _pool_statistics(found: Match, plain: Norm, core: Any) -> None:
    """Running statistics of the new pattern, the same for all channels that share one."""
    sizes, shared = channel_axes(plain.pattern, plain.num_channels)
    broadcast = [1 if axis in shared else size for axis, size in enumerate(sizes)]
    for name, value in (("running_mean", found.mean), ("running_var", found.var)):
        pooled = value.reshape(broadcast).expand(sizes).reshape(-1)
        core._buffers[name] = pooled.to(core._buffers[name])


def _keeps(reading: Reading, core: Any, found: Match | None, wish: Wish) -> str:
    if found is not None and wish.keep == "function":
        is_exact = wish.strength == 1 or getattr(core, "running_mean", None) is not None
        return EXACT if is_exact else MOMENTS
    same = same_statistics(reading.pattern, core.pattern, reading.num_channels)
    both = same and is_one_pattern(core) and is_one_pattern(reading.core)
    return EXACT if both and wish.strength is None else AFFINE


def _past(
    old: nn.Module, source: Known, core: Any, found: Match | None, wish: Wish
) -> Replaced | None:
    if wish.keep == "affine":
        before = replaced(old)
        if before is None:
            return Replaced(old, matched=False)
        return None if before.matched else Replaced(before.layer, matched=False)
    if found is None:
        return Replaced(source.layer, matched=False)
    written = (None if t is None else t.detach().clone() for t in (core.weight, core.bias))
    return Replaced(source.layer, True, *written)


def _finished(core: Any, old: nn.Module, reading: Reading) -> nn.Module:
    """The norm with what followed it in the old layer, in the mode of the old layer."""
    new = Followed(core, *reading.then) if reading.then else core
    new.training = core.training = old.training  # what follows has modes of its own
    return new
