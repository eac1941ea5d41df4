"""One run by several processes: the same result, by whomever, and one cause where it fails."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from normlab.lab import checkpoint, train
from normlab.lab.compute import Compute, ComputeError
from normlab.lab.experiment import Experiment, ExperimentError
from normlab.lab.processes import Group, ProcessError
from normlab.lab.runs import Run
from normlab.lab.update import share_of

TINY = Experiment(data="digits", num_train=64, num_validation=33, batch_size=16, epochs=2)
ONE, TWO = Compute(device="cpu"), Compute(device="cpu", processes=2, timeout=30)


def trained(root: Path, experiment: Experiment, compute: Compute, report=None) -> Run:
    run = Run.create(root, experiment)
    train.train(run, compute=compute, report=report)
    return run


def weights(run: Run) -> dict[str, torch.Tensor]:
    tensors, _, _ = checkpoint.load(run.path / "checkpoints" / "last")
    return tensors


def assert_close(ours: Run, theirs: Run) -> None:
    """Equal but for the order of sums, after a few steps of float32."""
    found, expected = weights(ours), weights(theirs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-3, rtol=2e-3)
    for one, other in zip(epochs(ours), epochs(theirs), strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
        assert one["samples"] == other["samples"]


def epochs(run: Run) -> list[dict]:
    return [e for e in run.events() if e["event"] == "epoch"]


WAYS = {
    "no statistics between images": {"norm": "group"},
    "statistics of all": {"norm": "batch"},
    "statistics per worker": {"norm": "batch", "norm_batch_size": 8},
    "smaller slices": {"norm": "batch", "norm_batch_size": 4},
    "F13: uneven parts": {"norm": "batch", "batch_size": 15},
    "F13: uneven slices": {"norm": "batch", "batch_size": 15, "norm_batch_size": 5},
    "F13: a process without images": {"norm": "group", "batch_size": 1, "num_train": 6},
    "parts one after the other": {"norm": "batch", "accumulate": 2, "norm_batch_size": 4},
    "mixed images": {"norm": "group", "mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1},
    "averaged, clipped": {"norm": "batch", "ema": 0.9, "max_gradient_norm": 0.5},
}


@pytest.fixture(scope="module")
def by_two(tmp_path_factory) -> dict[str, Run]:
    """Every way, by two processes that torchrun has started."""
    root = tmp_path_factory.mktemp("two")
    runs = {way: Run.create(root, small(way)) for way in WAYS}
    torchrun(*(run.path for run in runs.values()))
    return runs


def small(way: str) -> Experiment:
    return TINY.replace(learning_rate=0.02, epochs=1, **WAYS[way])


DOMAINS = {
    "statistics of each domain": {},
    "batches of one domain": {"order": "domain"},
    "a process without a domain": {"batch_size": 3, "num_train": 24},
}


@pytest.mark.parametrize("way", DOMAINS)
def test_two_processes_share_the_statistics_of_each_domain(tmp_path, way):
    for name, value in (("dark", 0), ("bright", 150)):
        images = np.random.default_rng(value).integers(value, value + 90, (60, 8, 8))
        np.savez(tmp_path / name, images=images.astype(np.uint8), labels=np.arange(60) % 2)
    address = f"joined:npz:{tmp_path}/dark.npz+npz:{tmp_path}/bright.npz"
    e = TINY.replace(
        data=address, model="cifar_resnet:8", norm="domain_batch:2", learning_rate=0.02, epochs=1,
        **DOMAINS[way],
    )  # fmt: skip
    two, one = (trained(tmp_path / c, e, w) for c, w in (("two", TWO), ("one", ONE)))
    assert_close(two, one)


def torchrun(*folders: Path) -> None:
    script = folders[0].parent / "rank.py"
    script.write_text(TORCHRUN)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *launcher, script, *folders], check=True, env=env)


TORCHRUN = """
import sys
from pathlib import Path
from normlab.lab import train
from normlab.lab.compute import Compute, ComputeError
from normlab.lab.runs import Run

for folder in sys.argv[1:]:
    state = train.train(Run.open(Path(folder)), compute=Compute(device="cpu", timeout=60))
    assert state == "finished", folder
"""


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_find_what_one_finds(tmp_path, by_two, way):
    assert_close(by_two[way], trained(tmp_path, small(way), ONE))


def test_finished_run_is_left_alone_by_all_processes(by_two):
    run = by_two["statistics of all"]
    before = [(p, p.stat().st_mtime_ns) for p in sorted(run.path.rglob("*")) if p.name != "lock"]
    torchrun(run.path)
    assert [(p, p.stat().st_mtime_ns) for p, _ in before] == before


def test_F13_validation_is_over_exactly_the_data_set(tmp_path):
    e = TINY.replace(norm="none", learning_rate=1e-9, epochs=1, image_size=64)  # 16 images a part
    two, one = (trained(tmp_path / c, e, w) for c, w in (("two", TWO), ("one", ONE)))
    (found,), (expected,) = epochs(two), epochs(one)
    assert found["validation_error"] == expected["validation_error"]
    assert found["validation_loss"] == pytest.approx(expected["validation_loss"], rel=1e-6)


def test_interrupted_run_of_two_processes_ends_with_the_same_bits(tmp_path):
    e = TINY.replace(norm="batch", norm_batch_size=8, model="convnet", image_size=16)
    whole = trained(tmp_path / "whole", e, TWO)

    def stop(progress: train.Progress) -> None:
        if progress.step in (1, 5):
            os.kill(os.getpid(), signal.SIGTERM)

    run = Run.create(tmp_path / "cut", e)
    states = [train.train(run, compute=TWO, report=stop) for _ in range(3)]
    assert states == ["interrupted", "interrupted", "finished"]
    ours, theirs = weights(run), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


FAULTS = """
import os, signal, time
from torch import distributed
from normlab.lab import checkpoint
from normlab.lab.data import digits
from normlab.lab.data.batches import Batches
from normlab.lab.data.dataset import DataError

def raise_error():
    raise DataError("cells/7.png is empty")

def full_disk(*args, **kwargs):
    raise OSError("the disk of process 1 is full")

def fail_to_save():
    checkpoint.save = full_disk

FAULTS = {
    "raises": raise_error,
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hangs": lambda: time.sleep(600),
    "disk": fail_to_save,
}
fetch = Batches.__getitem__

def load(what, split):
    def faulty(self, place):
        if place == (1, 2):
            FAULTS[what]()
        return fetch(self, place)

    if distributed.is_initialized() and distributed.get_rank() == 1:
        Batches.__getitem__ = faulty
    return digits.load("", split)
"""


@pytest.fixture
def faults(tmp_path, monkeypatch) -> Path:
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "faulty.py").write_text(FAULTS)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("raises", "process 1 of 0 to 1: DataError: cells/7.png is empty"),
        ("killed", "process 1 of 0 to 1 was ended by SIGKILL; the machine may be out of memory"),
        ("hangs", "another process said nothing for 6 seconds"),
    ],
    ids=["F11: raises", "F11: is killed", "F11: hangs"],
)
def test_failing_process_ends_all_with_one_cause(faults, fault, cause):
    e = TINY.replace(data=f"mine.faulty:{fault}", norm="batch", epochs=4)
    run = Run.create(faults / "runs", e)
    compute = Compute(device="cpu", processes=2, timeout=6, workers=0)
    with pytest.raises(ProcessError, match=cause):
        train.train(run, compute=compute)
    assert run.status["state"] == "failed"
    assert cause in run.status["cause"]
    checkpoint.load(run.path / "checkpoints" / "last")  # of the epoch that was completed


def test_F12_only_the_first_process_writes(faults):
    e = TINY.replace(data="mine.faulty:disk", epochs=3)
    run = trained(faults / "runs", e, Compute(device="cpu", processes=2, timeout=30, workers=0))
    assert run.status["state"] == "finished"
    assert len(epochs(run)) == 3


def test_other_number_of_processes_is_refused_unless_allowed(tmp_path):
    """F14"""

    def stop(progress: train.Progress) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    run = trained(tmp_path, TINY, ONE, stop)
    with pytest.raises(ValueError, match="processes was 1, is 2; go back to them, or say --allow-"):
        train.train(run, compute=TWO)
    allowed = Compute(device="cpu", processes=2, timeout=30, allow_change=("processes",))
    with pytest.warns(UserWarning, match="processes was 1, is 2.*not be the same to the bit"):
        assert train.train(run, compute=allowed) == "finished"


def test_norm_that_cannot_share_statistics_is_refused(tmp_path):
    run = Run.create(tmp_path, TINY.replace(norm="torch_bn"))
    with pytest.raises(ExperimentError, match="norm 'torch_bn' cannot share statistics between"):
        train.train(run, compute=TWO)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"batch_size": 8}, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ({"batch_size": 7}, [[0, 1, 2], [3, 4, 5, 6]]),
        ({"batch_size": 1}, [[], [0]]),
        ({"batch_size": 6, "norm_batch_size": 2}, [[0, 1], [2, 3, 4, 5]]),
        ({"batch_size": 8, "accumulate": 2}, [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ({"batch_size": 6, "mixup": 0.2}, [[0, 1], [2, 3, 4, 5]]),
    ],
    ids=["even", "uneven", "empty", "slices", "one part after the other", "neighbours"],
)
def test_each_image_of_a_batch_is_computed_by_one_process(fields, expected):
    e = TINY.replace(norm="batch", **fields)
    cpu = torch.device("cpu")
    found = [share_of(e, Group(rank, 2, cpu)) for rank in range(2)]
    assert [f.tolist() for f in found] == expected


def test_every_process_needs_a_gpu_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    run = Run.create(tmp_path, TINY)
    with pytest.raises(ComputeError, match="2 processes need as many GPUs, and there are 1; use"):
        train.train(run, compute=Compute(processes=2))
    assert run.status["state"] == "failed"
