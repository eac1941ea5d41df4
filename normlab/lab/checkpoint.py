"""Training states on disk that survive kills, full disks and flipped bits.

A checkpoint is a directory named after its step. It is written aside, synced, read back and then
renamed; older ones are deleted only after that.
"""

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from normlab.lab.runs import sync_directory
from normlab.lab.weights import (
    CheckpointError,
    load_weights,
    parse_safetensors,
    read_bytes,
    read_file,
    unwrapped,
)

FORMAT = 1
__all__ = ["CheckpointError", "is_empty", "load", "load_weights", "read_weights", "save", "verify"]

_PAYLOAD = ("tensors.safetensors", "state.json")
_MANIFEST = "manifest.json"
_FILES = {*_PAYLOAD, _MANIFEST}
_NAME = re.compile(r"(\d{12,})(?:-(\d+))?")
_TEMPORARY = re.compile(r"\.tmp-\d+(?:-\d+)?-(\d{1,10})")
_MAX_JSON = 50 * 2**20  # bytes


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    *,
    keep: int = 2,
) -> Path:
    """Write the training state after `step` and return its directory.

    Args:
        folder: holds the checkpoints of one run; its parent must exist.
        tensors: any names, dtypes, devices and strides; shared ones are written once per name.
        state: everything else, as JSON: text keys and no tensors.
        keep: newest checkpoints that stay, this one included.

    A step saved twice gets a second name ("…7-1"), so that the first is never in danger.

    Raises:
        CheckpointError: nothing was written; older checkpoints are as they were.
    """
    if step < 0 or keep < 1:
        raise CheckpointError(f"step must be at least 0 and keep at least 1, got {step} and {keep}")
    contents = {"tensors.safetensors": _tensor_bytes(tensors), "state.json": _json_bytes(state)}
    described = {name: _description(data) for name, data in contents.items()}
    contents[_MANIFEST] = _sealed({"format": FORMAT, "writer": _writer(), "files": described})
    temporary = folder / f".tmp-{step}-{os.getpid()}"
    try:
        if not folder.is_dir():
            os.mkdir(folder)
            sync_directory(folder.parent)
        _remove_leftovers(folder)
        target, same = _name_for(folder, step, contents[_MANIFEST])
        if same:
            sync_directory(folder)  # a process that was killed may have renamed and not synced
            return target
        os.mkdir(temporary)
        for name, data in contents.items():
            _write(temporary / name, data)
        sync_directory(temporary)
        _read_verified(temporary)
        os.rename(temporary, target)
        sync_directory(folder)
    except (OSError, CheckpointError) as error:
        with contextlib.suppress(OSError):
            _remove(temporary)
        needed = sum(len(data) for data in contents.values())
        raise CheckpointError(
            f"{folder}: step {step} was not saved, it needs {needed} bytes: {_reason(error)}; "
            "older checkpoints are intact"
        ) from error
    _delete_older(folder, target, keep)
    return target


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], Path]:
    """The tensors, state and directory of the newest checkpoint that is whole.

    Warns once, naming the bad files, when a newer one is damaged.

    Raises:
        CheckpointError: there is none.
    """
    while True:
        paths = _checkpoints(folder)
        problems: list[str] = []
        for path in paths:
            try:
                tensors, state = _parsed(path)
            except CheckpointError as error:
                problems.append(str(error))
                continue
            if problems:
                warnings.warn(f"{'; '.join(problems)}. Going back to {path}", stacklevel=2)
            return tensors, state, path
        if _checkpoints(folder) == paths:  # else a run that is still going on replaced them
            break
    found = "; ".join(problems) or "there is none"
    raise CheckpointError(f"{folder}: no usable checkpoint: {found}. Train again from the start")


def is_empty(folder: Path) -> bool:
    """Whether there is no checkpoint, not even a damaged one; what kills have left is none."""
    return not folder.exists() or not _checkpoints(folder)


def verify(folder: Path) -> list[tuple[Path, str | None]]:
    """Every checkpoint, newest first, with what is wrong with it or None."""
    return [(path, _problem(path)) for path in _checkpoints(folder)]


def read_weights(path: Path, *, allow_nan: bool = False) -> dict[str, Tensor]:
    """The weights in a file or folder, by name, on the CPU.

    Args:
        path: .safetensors; .pt with a state_dict, or one under "state_dict" or "model"; a
            checkpoint, a folder of them or a run, whose best one is taken: the tensors named
            "model.…".

    The prefixes `module.` and `_orig_mod.` of wrapped models are removed.

    Raises:
        CheckpointError: no weights, damaged ones, NaN, or a pickle that wants to run code.
    """
    found = _folder_weights(path) if path.is_dir() else read_file(path)
    return unwrapped(found, path, allow_nan=allow_nan)


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest[: 2**30]) :]  # macOS refuses 2 GiB at once
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _name_for(folder: Path, step: int, manifest: bytes) -> tuple[Path, bool]:
    """A new name for this step, or its newest one if that holds exactly the same."""
    taken = [p for p in _checkpoints(folder) if _order(p.name)[0] == step]
    if not taken:
        return folder / f"{step:012d}", False
    if _problem(taken[0]) is None and read_bytes(taken[0] / _MANIFEST) == manifest:
        return taken[0], True
    return folder / f"{step:012d}-{_order(taken[0].name)[1] + 1}", False


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if e.is_dir(follow_symlinks=False)]
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {_reason(error)}") from error
    order = {n: _order(n) for n in names if _NAME.fullmatch(n)}
    return [folder / n for n in sorted(order, key=lambda n: order[n], reverse=True)]


def _order(name: str) -> tuple[int, int]:
    step, _, revision = name.partition("-")
    return int(step), int(revision or 0)


def _delete_older(folder: Path, newest: Path, keep: int) -> None:
    older = [p for p in _checkpoints(folder) if _order(p.name) < _order(newest.name)]
    for path in older[keep - 1 :]:
        try:
            if _is_ours(path):
                aside = folder / f".tmp-{path.name}-{os.getpid()}"
                os.rename(path, aside)  # so that a kill half-way leaves no damaged checkpoint
                _remove(aside)
        except OSError as error:
            warnings.warn(f"{path}: cannot be deleted: {error.strerror}", stacklevel=3)


def _remove_leftovers(folder: Path) -> None:
    """Delete what killed processes were writing."""
    for path in list(folder.iterdir()):
        match = _TEMPORARY.fullmatch(path.name)
        if match and not _is_running(int(match[1])):
            with contextlib.suppress(OSError):
                _remove(path)


def _is_running(pid: int) -> bool:
    if pid == os.getpid():  # this process writes one checkpoint at a time, so it is an old one
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _is_ours(path: Path) -> bool:
    return not path.is_symlink() and path.is_dir() and {p.name for p in path.iterdir()} <= _FILES


def _remove(path: Path) -> None:
    if not _is_ours(path):
        return
    for file in list(path.iterdir()):
        os.unlink(file)
    os.rmdir(path)


_REMEDIES = {
    errno.ENOSPC: ", free space on the disk",
    errno.EDQUOT: ", free some of your quota",
    errno.EFBIG: ", raise the limit on file sizes (ulimit -f)",
    errno.EACCES: ", make the folder writable",
    errno.EROFS: ", choose a folder on a writable disk",
    errno.ENOENT: ", the folder of the run is gone",
}


def _reason(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    return f"{error.strerror or error}{_REMEDIES.get(error.errno or 0, '')}"


def _tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
            raise CheckpointError(f"{name}: only dense tensors can be saved, not {tensor.layout}")
        dense = tensor.detach().cpu().contiguous()
        if dense.untyped_storage().data_ptr() in storages:
            dense = dense.clone()  # safetensors refuses tensors that share memory
        storages.add(dense.untyped_storage().data_ptr())
        plain[name] = dense
    return safetensors.torch.save(plain)


def _json_bytes(state: Mapping[str, Any]) -> bytes:
    _check_keys(state, "state")
    try:
        return json.dumps(state, indent=1, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"state is not JSON: {error}; keep tensors in `tensors`") from None


def _check_keys(value: Any, where: str) -> None:
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_keys(item, f"{where}[{index}]")
    if not isinstance(value, Mapping):
        return
    for key, item in value.items():
        if not isinstance(key, str):
            raise CheckpointError(
                f"{where} has the key {key!r}; JSON has only text, use {str(key)!r}"
            )
        _check_keys(item, f"{where}[{key!r}]")


def _description(data: bytes) -> dict[str, int | str]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _sealed(fields: dict[str, Any]) -> bytes:
    """A manifest with its own checksum, so that no bit of it can change unseen."""
    seal = hashlib.sha256(json.dumps(fields).encode()).hexdigest()
    return json.dumps({**fields, "sha256": seal}, indent=1).encode()


def _writer() -> str:
    try:
        return f"normlab {importlib.metadata.version('normlab')}"
    except importlib.metadata.PackageNotFoundError:
        return "normlab"


def _manifest(path: Path) -> dict[str, Any]:
    data = read_bytes(path)
    fields = _parsed_json(data, path)
    fields.pop("sha256", None)
    try:
        intact = _sealed(fields) == data
    except RecursionError:
        intact = False
    if not intact:
        raise CheckpointError(f"{path}: damaged, its checksum differs")
    if fields.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: format {fields.get('format')!r}, written by {fields.get('writer')}; this "
            f"version reads format {FORMAT}: use the version that wrote it, or a newer one"
        )
    files = fields.get("files")
    if not isinstance(files, dict) or set(files) != set(_PAYLOAD):
        raise CheckpointError(f"{path}: must list {' and '.join(_PAYLOAD)}")
    return files


def _read_verified(path: Path) -> dict[str, bytes]:
    """The files of a checkpoint, each exactly as its manifest says."""
    files = _manifest(path / _MANIFEST)
    try:
        extra = sorted(set(os.listdir(path)) - _FILES)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {_reason(error)}") from error
    if extra:
        raise CheckpointError(f"{path / extra[0]}: does not belong to the checkpoint, move it away")
    contents = {name: read_bytes(path / name) for name in _PAYLOAD}
    for name, data in contents.items():
        found = _description(data)
        if found != files[name]:
            raise CheckpointError(
                f"{path / name}: damaged: {found}, but its manifest says {files[name]}"
            )
    return contents


def _parsed(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    contents = _read_verified(path)
    state = _parsed_json(contents["state.json"], path / "state.json")
    file = "tensors.safetensors"
    return parse_safetensors(contents[file], path / file), state


def _problem(path: Path) -> str | None:
    try:
        _parsed(path)
    except CheckpointError as error:
        return str(error)
    return None


def _parsed_json(data: bytes, path: Path) -> dict[str, Any]:
    if len(data) > _MAX_JSON:
        raise CheckpointError(f"{path}: {len(data)} bytes, at most {_MAX_JSON} are read")
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged, not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path}: damaged, expected a JSON object")
    return parsed


def _folder_weights(path: Path) -> dict[str, Tensor]:
    if (path / _MANIFEST).exists():
        tensors = _parsed(path)[0]
    else:
        best = path / "checkpoints" / "best"
        tensors = load(best if best.is_dir() else path)[0]
    prefix = "model."
    weights = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    if not weights:
        raise CheckpointError(f"{path}: has no weights, which would be named {prefix}…")
    return weights
