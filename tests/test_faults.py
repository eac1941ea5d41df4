"""Faults of training: F01, F03, F05, F06, F09, F10, F14, F15 and F16."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import files
import killed_runs
import pytest
import torch
from torch.utils.data import get_worker_info

from normlab.lab import checkpoint, saving, train
from normlab.lab.checkpoint import CheckpointError
from normlab.lab.compute import Compute
from normlab.lab.data import pictures
from normlab.lab.data.batches import Batches
from normlab.lab.data.dataset import DataError
from normlab.lab.experiment import Experiment
from normlab.lab.processes import Group
from normlab.lab.runs import Run

ON_CPU = Compute(device="cpu")
SMALL = killed_runs.FORGETFUL.replace(model="cifar_resnet:8")


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory) -> tuple[Path, dict[str, list[list[int]]]]:
    root = tmp_path_factory.mktemp("killed")
    return root, killed_runs.killed(root, "alone", list(killed_runs.POINTS))


@pytest.mark.parametrize("point", killed_runs.POINTS)
def test_F01_run_killed_anywhere_ends_with_the_same_bits(killed_once, point):
    root, ends = killed_once
    life = list(killed_runs.POINTS).index(point)
    killed_runs.assert_as_if_never_killed(root, life, ends[str(life)], kills=1)


@pytest.mark.parametrize("how", ["workers", "torchrun"])
def test_F01_run_killed_everywhere_in_turn_ends_with_the_same_bits(tmp_path, how):
    ends = killed_runs.killed(tmp_path, how, [",".join(killed_runs.POINTS)])
    killed_runs.assert_as_if_never_killed(tmp_path, 0, ends["0"], kills=len(killed_runs.POINTS))


def test_F01_run_of_two_processes_killed_in_an_epoch_ends_with_the_same_bits(tmp_path):
    ends = killed_runs.killed(tmp_path, "processes", ["after step 9"])
    killed_runs.assert_as_if_never_killed(tmp_path, 0, ends["0"], kills=1)


def trained(root: Path, experiment: Experiment, compute: Compute = ON_CPU, report=None) -> Run:
    run = Run.create(root, experiment)
    train.train(run, compute=compute, report=report)
    return run


def stop_at(step: int):
    def report(progress: train.Progress) -> None:
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return report


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Pictures in files, for training and for validation."""
    folder = tmp_path_factory.mktemp("images")
    killed_runs.pictures(folder / "train", 48, ending="jpg")
    killed_runs.pictures(folder / "val", 12, ending="jpg", seed=1)
    return folder


def decoded(images: Path) -> Experiment:
    """Of pictures that are decoded anew in every epoch, by workers if there are any."""
    return SMALL.replace(data=f"folder:{images}", augment="imagenet", num_train=None)


def in_memory(images: Path) -> Experiment:
    """Of pictures that are decoded when they are loaded."""
    return SMALL.replace(data=f"folder:{images}", augment="crop", num_train=None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, images) -> Run:
    return trained(tmp_path_factory.mktemp("whole"), decoded(images), Compute(device="cpu"))


def vanish() -> None:
    found = pictures.OnDisk.open

    def gone(files, index):
        path, name = found(files, index)
        return f"{path}.gone", f"{name}.gone"

    pictures.OnDisk.open = gone  # of the worker's process, which nobody else sees


IN_A_WORKER = {
    "F09: it cannot read": (vanish, r"DataError: .*\d\d\.jpg\.gone cannot be .*\(image \d+ of its"),
    "F09: it has a fault": (
        lambda: {}["x"],
        r"DataError: batch \(2, 3\) was not fetched: KeyError: 'x'",
    ),
    "F09: it is killed": (
        lambda: os.kill(os.getpid(), signal.SIGKILL),
        r"DataError: a process that reads images was killed by SIGKILL, while waiting for "
        r"batches \(\d, \d\)",
    ),
    "F09: it hangs": (
        lambda: time.sleep(60),
        r"DataError: no images came for 2 seconds, while waiting for batches \(2, 3\), \(2, 4\)",
    ),
}


@pytest.mark.parametrize(("happens", "cause"), IN_A_WORKER.values(), ids=IN_A_WORKER)
def test_worker_that_fails_ends_a_training_that_can_go_on(
    tmp_path, monkeypatch, images, whole, happens, cause
):
    fetch = Batches.__getitem__

    def faulty(batches, place):
        if place == (2, 3) and get_worker_info() is not None:
            happens()
        return fetch(batches, place)

    run = Run.create(tmp_path, decoded(images))
    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__getitem__", faulty)
        with pytest.raises(DataError, match=cause.removeprefix("DataError: ")):
            train.train(run, compute=Compute(device="cpu", workers=2, timeout=2))
    assert run.status["state"] == "failed"
    assert re.match(cause, run.status["cause"])
    assert train.train(run, compute=ON_CPU) == "finished"
    killed_runs.assert_same(run, whole)


def halve(*files: Path) -> None:
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.fixture
def own_images(tmp_path, images) -> Path:
    return Path(shutil.copytree(images, tmp_path / "images"))


# where half a picture is, and by how many workers it is read
BAD = {
    "F10, 72: to train, decoded": (decoded, "train/dark/07.jpg", 0),
    "F10, 72: to train, in workers": (decoded, "train/dark/07.jpg", 2),
    "F10, 72: to train, in memory": (in_memory, "train/dark/07.jpg", 0),
    "F10, 72: to validate": (decoded, "val/bright/04.jpg", 2),
}


@pytest.mark.parametrize(("experiment", "name", "workers"), BAD.values(), ids=BAD)
def test_half_a_picture_ends_a_training_by_its_path(
    tmp_path, own_images, experiment, name, workers
):
    halve(own_images / name)
    run = Run.create(tmp_path, experiment(own_images))
    with pytest.raises(DataError, match=f"{name} cannot be read .*replace or remove it"):
        train.train(run, compute=Compute(device="cpu", workers=workers))
    assert run.status["state"] == "failed"
    assert name in run.status["cause"]


@pytest.mark.filterwarnings("ignore:1 of 12 images:UserWarning")
@pytest.mark.parametrize(("experiment", "name", "workers"), BAD.values(), ids=BAD)
def test_half_a_picture_can_be_passed_over(tmp_path, own_images, experiment, name, workers):
    halve(own_images / name)
    compute = Compute(device="cpu", skip_bad=1, workers=workers)
    without_stop = trained(tmp_path / "whole", experiment(own_images), compute)
    assert without_stop.status["state"] == "finished"
    (skipped,) = [e for e in without_stop.events() if e["event"] == "skipped"]
    assert name in skipped["image"]
    stopped = trained(tmp_path / "cut", experiment(own_images), compute, stop_at(8))
    assert stopped.status["state"] == "interrupted"
    assert train.train(stopped, compute=compute) == "finished"
    killed_runs.assert_same(stopped, without_stop)


@pytest.mark.filterwarnings("ignore:1 of 12 images:UserWarning")
@pytest.mark.parametrize("experiment", [decoded, in_memory], ids=["F10: decoded", "F10: in memory"])
def test_more_bad_pictures_than_allowed_end_a_training(tmp_path, own_images, experiment):
    halve(own_images / "train/dark/07.jpg", own_images / "val/bright/04.jpg")
    run = Run.create(tmp_path, experiment(own_images))
    said = r"2 unreadable images, where 1 may be passed over; the last: .*/0[74]\.jpg cannot be"
    with pytest.raises(DataError, match=said):
        train.train(run, compute=Compute(device="cpu", skip_bad=1))
    assert run.status["state"] == "failed"
    assert re.search(said, run.status["cause"])


@pytest.mark.filterwarnings("ignore:1 of 12 images:UserWarning")
def test_run_killed_at_its_end_passes_over_the_same_pictures(tmp_path, monkeypatch, own_images):
    """F10: nothing is left to validate when it goes on."""
    halve(own_images / "val/bright/04.jpg")
    compute = Compute(device="cpu", skip_bad=1)
    run = Run.create(tmp_path, decoded(own_images))
    with monkeypatch.context() as patch:
        patch.setattr(train, "confusion", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.train(run, compute=compute)
    assert train.train(run, compute=compute) == "finished"
    assert [e["event"] for e in run.events()].count("skipped") == 1


def interrupted(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.fixture
def stopped(tmp_path, own_images) -> Run:
    """A run of pictures in files, stopped in its second epoch."""
    return trained(tmp_path / "runs", decoded(own_images), report=stop_at(8))


def another_picture(run: Run, monkeypatch) -> None:
    folder = Path(run.experiment.data.removeprefix("folder:")) / "train" / "dark"
    shutil.copy(folder / "03.jpg", folder / "new.jpg")
    train.load_data.cache_clear()  # as another process would not have it


def another_class(run: Run, monkeypatch) -> None:
    folder = Path(run.experiment.data.removeprefix("folder:")) / "train"
    (folder / "dark/03.jpg").rename(folder / "bright/new.jpg")
    train.load_data.cache_clear()


def another_torch(run: Run, monkeypatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.99.0")


def another_device(run: Run, monkeypatch) -> None:
    real = saving.conditions

    def conditions(group, *others):
        return real(Group(group.rank, group.size, torch.device("cuda", 0)), *others)

    monkeypatch.setattr(saving, "conditions", conditions)


CHANGES = {
    "F14: more images": (
        another_picture, "images",
        r"images was 48 and 12 in 2 classes \(.*\), is 49 and 12 in 2 classes \(.*\)",
    ),
    "F14: an image of another class": (
        another_class, "images",
        r"images was 48 .* \(digests (\w+) and (\w+)\), is 48 .* \(digests (?!\1)\w+ and \2\)",
    ),
    "F14: another torch": (
        another_torch, "torch", re.escape(f"torch was {torch.__version__}, is 2.99.0")
    ),
    "F14: another device": (another_device, "device", "device was cpu, is cuda"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "key", "said"), CHANGES.values(), ids=CHANGES)
def test_changed_conditions_are_refused_by_name_unless_allowed(
    stopped, monkeypatch, change, key, said
):
    before = files.snapshot(stopped.path / "checkpoints")
    change(stopped, monkeypatch)
    refused = rf"under other conditions: {said}; go back to .* or say --allow-change {key}$"
    with pytest.raises(saving.ResumeError, match=refused):
        train.train(stopped, compute=ON_CPU)
    assert files.snapshot(stopped.path / "checkpoints") == before
    allowed = Compute(device="cpu", allow_change=(key,))
    with pytest.warns(
        UserWarning, match=rf"\({said}\); the result will not be the same to the bit"
    ):
        assert train.train(stopped, compute=allowed) == "finished"


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def broken(*args, **kwargs):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


DISKS = {
    "F05: full": (
        full,
        r"step 10 was not saved, it needs \d+ bytes: No space left on device, free",
    ),
    "F06: broken": (broken, r"step 10 was not saved, it needs \d+ bytes: Input/output error"),
}


@pytest.mark.parametrize(("fault", "said"), DISKS.values(), ids=DISKS)
def test_disk_that_fails_in_a_training_costs_no_checkpoint(
    tmp_path, monkeypatch, images, whole, fault, said
):
    run = Run.create(tmp_path, decoded(images))
    with monkeypatch.context() as patch:

        def report(progress: train.Progress) -> None:
            if progress.step == 10:
                patch.setattr(train, "CHECKPOINT_SECONDS", -1)
                patch.setattr(os, "fsync", fault)  # every file of the run, status.json too

        with pytest.raises(CheckpointError, match=said):
            train.train(run, compute=ON_CPU, report=report)
    ((_, problem), *_) = checkpoint.verify(run.path / "checkpoints" / "last")
    assert problem is None
    assert checkpoint.load(run.path / "checkpoints" / "last")[1]["position"]["step"] == 6
    assert train.train(run, compute=ON_CPU) == "finished"
    killed_runs.assert_same(run, whole)


def normlab(*arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "normlab.cli", "train", "--device", "cpu", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(killed_runs.HERE.parent), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for(root: Path, event: str, *, times: int = 1) -> Run:
    """The run in a folder, once its process has written that event."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for file in root.glob("*/metrics.jsonl"):
            if file.read_bytes().count(f'"event": "{event}"'.encode()) >= times:
                return Run.open(file.parent)
        time.sleep(0.02)
    raise TimeoutError(f"no {event} in {root}")


def test_signals_stop_the_command_with_their_exit_codes(tmp_path):
    """F15, F16"""
    quick = ["--data", "digits", "--num-train", 64, "--num-validation", 32, "--batch-size", 16,
             "--epochs", 5000, "--out", tmp_path / "quick"]  # fmt: skip
    slow = ["--data", "digits", "--num-train", 256, "--batch-size", 128, "--image-size", 64,
            "--epochs", 5000, "--out", tmp_path / "slow"]  # fmt: skip
    first = normlab(*quick)
    run = wait_for(tmp_path / "quick", "epoch")
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=60)
    assert (first.returncode, "interrupted; go on with --resume" in out) == (130, True), err
    assert run.status["state"] == "interrupted"

    twice = normlab(*slow)
    slow_run = wait_for(tmp_path / "slow", "start")
    twice.send_signal(signal.SIGINT)
    time.sleep(0.1)  # a step takes longer
    twice.send_signal(signal.SIGINT)
    _, err = twice.communicate(timeout=60)
    assert twice.returncode == 130
    assert "interrupted; the same command goes on" in err
    assert slow_run.status["state"] == "interrupted"
    assert [e["event"] for e in slow_run.events()] == ["start"]

    num_epochs = len(run.events()) - 1
    again = normlab(*quick, "--resume")
    wait_for(tmp_path / "quick", "epoch", times=num_epochs + 1)
    again.send_signal(signal.SIGTERM)
    _, err = again.communicate(timeout=60)
    assert again.returncode == 143, err
    epochs = [e["epoch"] for e in run.events() if e["event"] == "epoch"]
    assert epochs == list(range(1, len(epochs) + 1))
    for folder in (run.path / "checkpoints").iterdir():
        assert [problem for _, problem in checkpoint.verify(folder) if problem] == []
