"""Weights from anybody's file into a model, or one sentence that says why not.

Nothing here runs code from a file: .pt files are read as tensors only.
"""

import json
import re
import struct
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn


class CheckpointError(ValueError):
    """Weights or a training state that cannot be written, read or loaded; names the file."""


def read_file(path: Path) -> dict[str, Tensor]:
    """The named tensors in a .safetensors or .pt file; what it is, is told by its first bytes."""
    head = read_bytes(path, 512)
    for is_kind, sentence in _NOT_WEIGHTS:
        if is_kind(head):
            raise CheckpointError(f"{path}: {sentence}")
    if head[8:9] == b"{":
        return parse_safetensors(read_bytes(path), path)
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return _read_torch(path)
    raise CheckpointError(
        f"{path}: neither .safetensors nor .pt, or damaged (it begins with {head[:8]!r})"
    )


def read_bytes(path: Path, size: int = -1) -> bytes:
    """The first `size` bytes of a file, by default all."""
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path}: expected a file")  # a pipe would be waited for
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def parse_safetensors(data: bytes, path: Path) -> dict[str, Tensor]:
    """The named tensors in the bytes of a .safetensors file."""
    try:
        tensors = safetensors.torch.load(data)
        length = struct.unpack("<Q", data[:8])[0]
        json.loads(data[8 : 8 + length], object_pairs_hook=_without_duplicates)
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        reason = str(error).removeprefix("Error while deserializing: ")
        raise CheckpointError(f"{path}: damaged: {reason}; get the file again") from None
    return tensors


def unwrapped(
    found: Mapping[str, Tensor], path: Path, *, allow_nan: bool = False
) -> dict[str, Tensor]:
    """The same weights named as in the bare model; none, equal names and NaN are refused."""
    names = [name.replace("_orig_mod.", "") for name in found]  # torch.compile
    while names and all(name.startswith("module.") for name in names):  # data parallel
        names = [name.removeprefix("module.") for name in names]
    tensors = dict(zip(names, found.values(), strict=True))
    if not tensors or len(tensors) < len(found):
        what = "weights of the same name" if found else "no tensors"
        raise CheckpointError(f"{path}: holds {what}, expected the weights of one model")
    bad = [name for name, tensor in tensors.items() if _has_nan(tensor)]
    if bad and not allow_nan:
        raise CheckpointError(
            f"{path}: NaN in {_listed(bad)}; that training diverged, use an earlier file"
        )
    return tensors


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy the weights into a model with exactly these names and shapes.

    Args:
        source: where they come from, for the message.

    Raises:
        CheckpointError: anything does not fit; all of it is listed and the model is unchanged.
    """
    wanted = {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}
    both = [n for n in wanted if n in tensors]
    missing = [n for n in wanted if n not in tensors and not _is_old_counter(n, tensors)]
    unexpected = [n for n in tensors if n not in wanted]
    shapes = [n for n in both if tensors[n].shape != wanted[n].shape]
    kinds = [n for n in both if _kind(tensors[n]) != _kind(wanted[n])]
    if not (missing or unexpected or shapes or kinds):
        # not copied by hand, as layers may keep state that is no tensor of theirs
        model.load_state_dict({name: tensors[name] for name in both}, strict=False)
        return
    misfits = {
        "missing in the file": _listed(missing),
        "not in the model": _listed(unexpected),
        "other shape": "; ".join(
            f"{n} is {_shape(tensors[n])}, the model's {_shape(wanted[n])}" for n in shapes
        ),
        "other type": "; ".join(
            f"{n} is {tensors[n].dtype}, the model's {wanted[n].dtype}" for n in kinds
        ),
    }
    lines = [f"  {what}: {names}" for what, names in misfits.items() if names]
    advice = _norm_advice(missing, unexpected) or _head_advice(shapes, tensors, wanted)
    advice = advice or "Build the model that the file was saved from."
    fit = f"{source} does not fit {type(model).__name__}:"
    raise CheckpointError("\n".join([fit, *lines, f"  {advice}"]))


def _norm_advice(missing: list[str], unexpected: list[str]) -> str | None:
    statistics = sorted({_leaf(n) for n in unexpected} & _STATISTICS)
    if statistics:
        return (
            f"{', '.join(statistics)} are the statistics of batch norm, and the model's norms keep "
            "none: load the file into the network with batch norm, then convert that."
        )
    statistics = sorted({_leaf(n) for n in missing} & _STATISTICS)
    if statistics:
        return (
            f"The model's norms need {', '.join(statistics)}, which the file's network did not "
            "keep: load it into the network with that norm, then convert that."
        )
    return None


def _head_advice(
    shapes: list[str], tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> str | None:
    """What to say when only the number of outputs of one layer differs."""
    heads = {n.rpartition(".")[0] for n in shapes}
    if len(heads) != 1 or any(tensors[n].shape[1:] != wanted[n].shape[1:] for n in shapes):
        return None
    theirs, ours = len(tensors[shapes[0]]), len(wanted[shapes[0]])
    return (
        f"The head {heads.pop()} has {theirs} classes in the file and {ours} in the model: build "
        f"the model with {theirs} classes."
    )


def _read_torch(path: Path) -> dict[str, Tensor]:
    if torch.__version__ < "2.10":
        raise CheckpointError(
            f"{path}: .pt files are read with torch 2.10 or newer, for the safety of its loader; "
            f"this is {torch.__version__}. Upgrade torch or save the weights as .safetensors"
        )
    try:
        damaged = zipfile.ZipFile(path).testzip() if zipfile.is_zipfile(path) else None
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises anything, KeyError included
        raise CheckpointError(f"{path}: {_torch_reason(str(error))}") from None
    if damaged:
        raise CheckpointError(f"{path}: damaged, the checksum of {damaged} differs; get it again")
    return _named_tensors(content, path)


def _torch_reason(message: str) -> str:
    wanted = re.search(r"GLOBAL (\S+)", message)
    if wanted or "TorchScript" in message:
        what = wanted[1] if wanted else "TorchScript"
        return (
            f"holds an object of Python, {what}, and only tensors are read; nothing was run. "
            "Where the file comes from, save model.state_dict() instead"
        )
    return "damaged or cut off; get the file again"


def _named_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        inner = (content.get(key) for key in ("state_dict", "model_state_dict", "model"))
        content = next((c for c in inner if isinstance(c, Mapping)), content)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, expected tensors by name (a state_dict)"
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: {name!r} is a {type(value).__name__}; expected tensors only, or a "
                'state_dict under "state_dict" or "model"'
            )
    return dict(content)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> None:
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"its header has {_listed(twice)} twice")


def _is_text(head: bytes) -> bool:
    return not any(byte < 9 or 13 < byte < 32 for byte in head)


_NOT_WEIGHTS = (
    (lambda head: not head, "is empty; get the file again"),
    (
        lambda head: head.startswith(b"version https://git-lfs"),
        "is only a Git LFS pointer to the weights; run `git lfs pull`",
    ),
    (
        lambda head: head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")),
        "is a web page, not weights; download the file itself",
    ),
    (_is_text, "is text, not weights; expected .safetensors or .pt"),
)

_STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}


def _is_old_counter(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """torch before 0.4.1 counted no batches; its files are complete without."""
    owner, _, leaf = name.rpartition(".")
    return leaf == "num_batches_tracked" and f"{owner}.running_mean".lstrip(".") in tensors


def _has_nan(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    wide = tensor.float() if tensor.element_size() == 1 else tensor  # isnan has no float8
    return bool(wide.isnan().any())


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "one number"


def _listed(names: Iterable[str]) -> str:
    """All names, those of one module together: conv1.weight, bn1.{weight, bias}."""
    modules: dict[str, list[str]] = {}
    for name in names:
        module, _, leaf = name.rpartition(".")
        modules.setdefault(f"{module}." if module else "", []).append(leaf)
    together = {m: ls[0] if len(ls) == 1 else f"{{{', '.join(ls)}}}" for m, ls in modules.items()}
    return ", ".join(module + leaves for module, leaves in together.items())
