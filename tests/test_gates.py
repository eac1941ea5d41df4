"""Gates of batch-instance norm on the page: read from checkpoints, and from nothing else."""

import json
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

from normlab.lab import runs
from normlab.lab.analysis import analyse
from normlab.lab.experiment import Experiment
from normlab.lab.report import gates


def save(run: Path, step: str, **layers: list[float]) -> Path:
    folder = run / "checkpoints" / "last" / step
    folder.mkdir(parents=True)
    file = folder / "tensors.safetensors"
    tensors = {f"model.{name}.gate": torch.tensor(values) for name, values in layers.items()}
    others = {"model.a.weight": torch.ones(3), "rng": torch.ones(5, dtype=torch.uint8)}
    safetensors.torch.save_file({**others, **tensors}, file)
    return file


def finished(root: Path, norm: str, seed: int) -> Path:
    run = runs.Run.create(root, Experiment(norm=norm, seed=seed))
    run.log("epoch", epoch=1, samples=64, train_error=5.0, validation_error=9.0)
    run.set_status("finished")
    return run.path


def test_gates_are_read_clipped() -> None:
    found = gates.Gates((0.0, 0.25, 0.5, 1.0))
    assert found.cells == ["4", "0.438", "50.0", "25.0", "25.0"]


def test_the_last_checkpoint_is_read(tmp_path: Path) -> None:
    save(tmp_path, "000000000009", a=[0.5])
    save(tmp_path, "000000000010", a=[0.5])
    save(tmp_path, "000000000010-1", a=[-0.5, 0.25, 1.5], b=[1.0])
    found = gates.gates_of(tmp_path)
    assert {name: g.values for name, g in found.items()} == {"a": (0.0, 0.25, 1.0), "b": (1.0,)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_gates_of_another_width_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    file = save(tmp_path, "000000000001", a=[0.5])
    safetensors.torch.save_file({"model.a.gate": torch.tensor([0.25, 0.5], dtype=dtype)}, file)
    assert gates.gates_of(tmp_path)["a"].values == (0.25, 0.5)


def packed(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


GATE = {"dtype": "F32", "shape": [1]}
DAMAGED = {
    "empty": b"",
    "header of 2**63 bytes": struct.pack("<Q", 2**63),
    "cut in the header": packed({"model.a.gate": GATE})[:-3],
    "not JSON": packed(b"{'"),
    "not UTF-8": packed(b"\xff\xfe"),
    "no object": packed([1]),
    "deep": packed(b"[" * 100_000),
    "no offsets": packed({"model.a.gate": GATE}),
    "offsets of text": packed({"model.a.gate": {**GATE, "data_offsets": ["0", "4"]}}),
    "behind the end": packed({"model.a.gate": {**GATE, "data_offsets": [0, 400]}}, bytes(4)),
    "no whole number": packed({"model.a.gate": {**GATE, "data_offsets": [0, 3]}}, bytes(4)),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_checkpoint_yields_to_the_one_before(content: bytes, tmp_path: Path) -> None:
    save(tmp_path, "000000000001", a=[0.75])
    save(tmp_path, "000000000002", a=[0.5]).write_bytes(content)
    assert {name: g.values for name, g in gates.gates_of(tmp_path).items()} == {"a": (0.75,)}


def test_huge_and_endless_gates_are_left_out(tmp_path: Path) -> None:
    file = save(tmp_path, "000000000001", a=[float("nan")], b=[float("inf")])
    assert gates.gates_of(tmp_path) == {}
    header = {"model.a.gate": {"dtype": "F32", "data_offsets": [0, 2**60]}}
    file.write_bytes(packed(header))
    assert gates.gates_of(tmp_path) == {}


def test_section_is_of_batch_instance_norm_over_its_seeds(tmp_path: Path) -> None:
    for seed in (0, 1):
        run = finished(tmp_path, "batch_instance", seed)
        save(run, "000000000002", a=[0.0, 1.0], b=[float(seed)])
    save(finished(tmp_path, "group", 0), "000000000002", a=[0.0])
    section = gates.section(analyse(runs.find(tmp_path)[0]), [])
    assert section is not None
    overall, by_layer = section.tables
    assert overall.rows == (("batch_instance", "32", "2", "6", "0.500", "50.0", "50.0", "50.0"),)
    assert [(row[2], row[4]) for row in by_layer.rows] == [("a", "0.500"), ("b", "0.500")]
    assert section.sentences == [
        "batch_instance at a batch size of 32: the gates ended at 0.50 on average, and 50.0 % of "
        "the gates are nearer to batch norm than to instance norm (2 seeds)."
    ]


def test_runs_without_gates_are_no_section(tmp_path: Path) -> None:
    save(finished(tmp_path, "group", 0), "000000000002", a=[0.0])
    finished(tmp_path, "batch_instance", 0)
    assert gates.section(analyse(runs.find(tmp_path)[0]), []) is None
