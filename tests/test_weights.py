"""Weights from files of others: rows 107 to 118 of the bad inputs, and S02."""

import json
import os
import pickle
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from normlab.lab.checkpoint import CheckpointError, load_weights, read_weights, save

WEIGHTS = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}
HEADER = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}


def network(norm: Callable[[int], nn.Module] = nn.BatchNorm2d, classes: int = 10) -> nn.Module:
    model = nn.Module()
    model.conv, model.bn, model.fc = nn.Conv2d(3, 4, 3), norm(4), nn.Linear(4, classes)
    return model


def pt(content) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


def raw(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data)


def header(text: str, data: bytes, length: int | None = None) -> Callable[[Path], None]:
    return raw(struct.pack("<Q", len(text) if length is None else length) + text.encode() + data)


def changed(write: Callable[[Path], None], change: Callable[[bytes], bytes]):
    def write_changed(path: Path) -> None:
        write(path)
        path.write_bytes(change(path.read_bytes()))

    return write_changed


def flipped(data: bytes) -> bytes:
    """One bit of the first weight, which torch.load would return without a word."""
    position = data.index(struct.pack("<f", 5.0))
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def hostile(write: Callable[[object, Path], None]) -> Callable[[Path], None]:
    return lambda path: write({"weight": Hostile(path.parent / "executed")}, path)


def scripted(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.script(nn.Linear(2, 2)).save(path)


def pickled(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


def saved_safetensors(path: Path) -> None:
    safetensors.torch.save_file(WEIGHTS, path)


GOOD = {
    "a .safetensors": saved_safetensors,
    "a state_dict": pt(WEIGHTS),
    "under state_dict": pt({"state_dict": WEIGHTS, "epoch": 3}),
    "under model": pt({"model": WEIGHTS, "optimizer": {"lr": 1}}),
    "of data parallel": pt({f"module.{n}": t for n, t in WEIGHTS.items()}),
    "of compile in data parallel": pt({f"module._orig_mod.{n}": t for n, t in WEIGHTS.items()}),
    "torch's old format": lambda p: torch.save(WEIGHTS, p, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("write", GOOD.values(), ids=GOOD)
def test_weights_are_read_from(tmp_path, write):
    path = tmp_path / "weights"
    write(path)
    found = read_weights(path)
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.parametrize("what", ["checkpoint", "folder of checkpoints", "run"])
def test_weights_are_read_from_a_run(tmp_path, what):
    tensors = {f"model.{name}": tensor for name, tensor in WEIGHTS.items()}
    (tmp_path / "checkpoints").mkdir()
    path = save(tmp_path / "checkpoints" / "best", 1, {**tensors, "optimizer.0": torch.ones(1)}, {})
    places = {"checkpoint": path, "folder of checkpoints": path.parent, "run": tmp_path}
    assert read_weights(places[what]).keys() == WEIGHTS.keys()


BAD = {
    "107: missing": (lambda path: None, "cannot be read: No such file"),
    "107: a folder": (Path.mkdir, "no usable checkpoint"),
    "107: empty": (raw(b""), "is empty"),
    "107: text": (raw("größer, not weights".encode()), "is text, not weights"),
    "107: HTML": (raw(b"\n<!DOCTYPE html><html>404"), "web page.*download the file itself"),
    "107: LFS pointer": (raw(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "107: noise": (raw(bytes(range(256))), "neither .safetensors nor .pt"),
    "108: a whole module": (pt(nn.Linear(2, 2)), r"torch.nn\S*Linear.*save model.state_dict\(\)"),
    "108: TorchScript": (scripted, "TorchScript, and only tensors are read"),
    "109: code in .pt": (
        hostile(torch.save),
        r"posix.mkdir, and only tensors are read; nothing was run",
    ),
    "109: code in a pickle": (hostile(pickled), "posix.mkdir.* nothing was run"),
    "110: .pt cut off": (changed(pt(WEIGHTS), lambda d: d[:-30]), "damaged or cut off"),
    "110: .pt cut in half": (
        changed(pt(WEIGHTS), lambda d: d[: len(d) // 2]),
        "damaged or cut off",
    ),
    "110: .pt with a bit flipped": (changed(pt(WEIGHTS), flipped), "the checksum of .* differs"),
    "110: .safetensors cut off": (changed(saved_safetensors, lambda d: d[:-1]), "damaged"),
    "111: not weights": (pt([1, 2]), "holds a list, expected tensors by name"),
    "111: other things too": (
        pt({"net": WEIGHTS, "epoch": 3}),
        "'net' is a dict; expected tensors",
    ),
    "111: no tensors": (pt({}), "holds no tensors"),
    "117: NaN": (pt({"fc.bias": torch.tensor([1, float("nan")])}), "NaN in fc.bias"),
    "118: 100 MB header": (header("{}", b"", 100_000_001), "header too large"),
    "118: endless header": (header("{}", b"", 2**63), "header too large"),
    "118: wrong length": (header(json.dumps(HEADER), b"\0" * 5), "file not fully covered"),
    "118: overlap": (header(json.dumps({**HEADER, "b": HEADER["a"]}), b"\0" * 4), "invalid offset"),
    "118: same name": (
        header(json.dumps({**HEADER, "b": HEADER["a"]}).replace('"b"', '"a"'), b"\0" * 4),
        "its header has a twice",
    ),
}


@pytest.mark.parametrize(("write", "message"), BAD.values(), ids=BAD)
def test_bad_file_is_refused_in_one_sentence(tmp_path, write, message):
    path = tmp_path / "weights.pt"
    write(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_weights(path)
    assert str(caught.value).startswith(str(path))
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_nan_is_read_when_asked_for(tmp_path):
    """117"""
    pt({"a": torch.tensor(float("nan"))})(tmp_path / "weights.pt")
    assert read_weights(tmp_path / "weights.pt", allow_nan=True)["a"].isnan()


def test_weights_saved_on_a_gpu_come_to_the_cpu(tmp_path, monkeypatch):
    """113"""
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    pt(WEIGHTS)(tmp_path / "weights.pt")
    monkeypatch.undo()
    assert b"cuda:0" in (tmp_path / "weights.pt").read_bytes()
    assert read_weights(tmp_path / "weights.pt")["weight"].device.type == "cpu"


def test_pt_is_refused_with_an_unsafe_torch(tmp_path, monkeypatch):
    """S02"""
    pt(WEIGHTS)(tmp_path / "weights.pt")
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.9.1"))
    with pytest.raises(
        CheckpointError, match=r"torch 2.10 or newer.* this is 2.9.1. Upgrade torch"
    ):
        read_weights(tmp_path / "weights.pt")


def test_weights_fill_a_model():
    source, target = network(), network()
    load_weights(target, source.state_dict(), "weights.pt")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters()))


def test_files_from_before_batches_were_counted_still_fit():
    tensors = network().state_dict()
    del tensors["bn.num_batches_tracked"]
    load_weights(network(), tensors, "weights.pt")


def without(tensors: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(2, channels)


MISFITS = {
    "111: all kinds at once": (
        lambda: network(),
        lambda: {
            **without(network().state_dict(), "fc.weight", "fc.bias"),
            "conv.weight": torch.zeros(4, 3, 5, 5),
            "conv.bias": torch.zeros(4, dtype=torch.int64),
            "head.weight": torch.zeros(10, 4),
        },
        r"missing in the file: fc\.\{weight, bias\}\n"
        r"  not in the model: head\.weight\n"
        r"  other shape: conv\.weight is 4×3×5×5, the model's 4×3×3×3\n"
        r"  other type: conv\.bias is torch.int64, the model's torch.float32\n"
        r"  Build the model that the file was saved from",
    ),
    "112: batch norm into group norm": (
        lambda: network(group_norm),
        lambda: network().state_dict(),
        r"not in the model: bn\.\{running_mean, running_var, num_batches_tracked\}\n"
        r".* statistics of batch norm, .* convert that",
    ),
    "112: group norm into batch norm": (
        lambda: network(),
        lambda: network(group_norm).state_dict(),
        r"missing in the file: bn\.\{running_mean, .*need num_batches_tracked, running_mean",
    ),
    "115: other class count": (
        lambda: network(),
        lambda: network(classes=1000).state_dict(),
        "The head fc has 1000 classes in the file and 10 in the model",
    ),
}


@pytest.mark.parametrize(("make", "tensors", "message"), MISFITS.values(), ids=MISFITS)
def test_misfit_is_explained_and_the_model_unchanged(make, tensors, message):
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"(?s)^weights.pt does not fit Module:.*{message}"):
        load_weights(model, tensors(), "weights.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
