"""Whether two networks are the same function: outputs, gradients and running statistics."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from normlab.surgery.graph import call
from normlab.surgery.layers import SurgeryError

_K = 512  # machine epsilons that sums in another order may differ by
_SPREAD = 64  # times what the network itself makes of a change in the last bit of its input
_CLOSE = 1e-5  # share of the largest output that folding weights may change it by
_VAGUE = 0.01  # a bound above this share of the values tells nothing

Values = dict[str, Tensor]


def check_agreement(before: nn.Module, after: nn.Module, sample_input: Any) -> None:
    """Compare two networks in training and in evaluation, on copies.

    |after - before| <= 512·eps·size + 64·moved,   size the largest value of its kind

    moved is by how much the network itself moves if its input does in the last bit. Everything is
    float64 where the networks run in it, else as they are.

    Raises:
        SurgeryError: one does not run, or they differ.
    """
    for training in (True, False):
        mode = "training" if training else "evaluation"
        dtype: torch.dtype | None = torch.float64
        try:
            try:
                expected = _values(before, sample_input, training, dtype)
            except Exception:  # many a forward fixes another type
                dtype = None
                expected = _values(before, sample_input, training, dtype)
            moved = _values(before, sample_input, training, dtype, jitter=True)
        except Exception as error:  # whatever the network raises
            raise SurgeryError(
                f"the model does not run in {mode} on the sample input, so nothing can be compared "
                f"({type(error).__name__}: {error}); give an input that it takes in both modes"
            ) from error
        try:
            actual = _values(after, sample_input, training, dtype)
        except Exception as error:
            raise SurgeryError(
                f"in {mode} the changed model raises {type(error).__name__}: {error}"
            ) from error
        _compare(expected, moved, actual, mode)


def check_outputs(before: nn.Module, after: nn.Module, sample_input: Any) -> None:
    """Compare the outputs of two networks in evaluation, in their own type.

    |after - before| <= max(1e-5, 8·eps)·size,   size the largest value

    Raises:
        SurgeryError: they differ.
    """
    with torch.no_grad():
        pair = [call(m, copy.deepcopy(sample_input)) for m in copy.deepcopy((before, after))]
    for i, (old, new) in enumerate(zip(*(tree_flatten(outputs)[0] for outputs in pair))):
        if not isinstance(old, Tensor) or not old.is_floating_point():
            continue
        if old.shape != new.shape:
            raise SurgeryError(f"output {i} has shape {tuple(new.shape)}, and had {old.shape}")
        bound = max(_CLOSE, 8 * torch.finfo(old.dtype).eps) * _largest(old)
        error = _largest(new - old)
        if not error <= bound:
            raise SurgeryError(f"output {i} differs by {error:.3g}, more than {bound:.3g}")


def _compare(expected: Values, moved: Values, actual: Values, mode: str) -> None:
    if expected.keys() != actual.keys():
        other = sorted(expected.keys() ^ actual.keys())
        raise SurgeryError(f"in {mode} only one of the models has {', '.join(other[:6])}")
    sizes: dict[str, float] = {}
    for name, value in expected.items():
        kind = name.split(" ")[0]
        sizes[kind] = max(sizes.get(kind, 0.0), _largest(value))
    for name, value in expected.items():
        if value.shape != actual[name].shape:
            raise SurgeryError(
                f"in {mode} {name} has shape {tuple(actual[name].shape)}, "
                f"and had {tuple(value.shape)}"
            )
        if not value.is_floating_point():
            if not torch.equal(value, actual[name]):
                raise SurgeryError(f"in {mode} {name} is no longer the same")
            continue
        size = sizes[name.split(" ")[0]]
        near = moved[name].shape == value.shape
        bound = _K * torch.finfo(value.dtype).eps * size
        bound += _SPREAD * _largest(moved[name] - value) if near else 0.0
        error = _largest(actual[name] - value)
        if not error <= bound:
            raise SurgeryError(
                f"in {mode} {name} differs by {error:.3g}, where rounding explains {bound:.3g} "
                f"of values up to {size:.3g}"
            )
        if bound > _VAGUE * size > 0:
            raise SurgeryError(
                f"in {mode} {name} is so sensitive that nothing can be compared: it moves by "
                f"{bound / _SPREAD:.3g} of {size:.3g} if the input does in its last bit"
            )


def _values(
    model: nn.Module,
    sample_input: Any,
    training: bool,
    dtype: torch.dtype | None,
    jitter: bool = False,
) -> Values:
    """Outputs, gradients and buffers after one pass of a copy."""
    model, sample_input = copy.deepcopy((model, sample_input))
    model = model.to(dtype).train(training)
    leaves, shape = tree_flatten(sample_input)
    generator = torch.Generator().manual_seed(1)
    wanted: dict[str, Tensor] = {}
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            continue
        x = leaf.detach().to(dtype or leaf.dtype)
        if jitter:
            x = x * (1 + torch.finfo(x.dtype).eps * _normal(x, generator).sign())
        leaves[i] = wanted[f"gradient of input {i}"] = x.requires_grad_()
    # the clone may be changed in place, which a leaf may not
    owned = {id(x) for x in wanted.values()}
    given = tree_unflatten([a.clone() if id(a) in owned else a for a in leaves], shape)
    wanted.update(
        (f"gradient of {name}", p) for name, p in model.named_parameters() if p.requires_grad
    )
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        outputs = [y for y in tree_flatten(call(model, given))[0] if isinstance(y, Tensor)]
    found = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    learnt = [y for y in outputs if y.requires_grad]
    if learnt and wanted:
        generator.manual_seed(2)
        dys = [_normal(y, generator) for y in learnt]
        got = torch.autograd.grad(learnt, list(wanted.values()), dys, allow_unused=True)
        found.update((name, g) for name, g in zip(wanted, got) if g is not None)
    found.update((f"buffer {name}", buffer) for name, buffer in model.named_buffers())
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.instancenorm._InstanceNorm):  # torch's do not count
            found.pop(f"buffer {name}.num_batches_tracked", None)
    return found


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Normal values, the same on every device and in every type."""
    values = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    return values.to(like.device, like.dtype)


def _largest(value: Tensor) -> float:
    return value.detach().abs().max().item() if value.numel() else 0.0
