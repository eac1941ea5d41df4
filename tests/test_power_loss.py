"""F30: after a power loss at any moment, a completed checkpoint is there and a run goes on."""

import os
import signal
import stat
from pathlib import Path

import pytest
import torch
from killed_runs import assert_same, without_time
from power_loss import Disk, restored

from normlab.lab import checkpoint, runs, saving, train
from normlab.lab.checkpoint import CheckpointError
from normlab.lab.compute import Compute
from normlab.lab.experiment import Experiment
from normlab.lab.models import convnet
from normlab.lab.runs import STATES, Run

ON_CPU = Compute(device="cpu")
TINY = Experiment(
    data="digits", model="convnet", norm="batch", num_train=32, num_validation=16, batch_size=16,
    epochs=2,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def small_network():
    """So that checkpoints are written and read a hundred times in a moment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convnet, "CHANNELS", (4, 8))
        patch.setattr(convnet, "FEATURES", (8,))
        yield


def save(folder: Path, step: int, value: int = 0, *, keep: int = 2) -> None:
    tensors = {"model.weight": torch.full((3, 4), float(step))}
    checkpoint.save(folder, step, tensors, {"step": step, "value": value}, keep=keep)


def found(folder: Path) -> tuple[int, int] | None:
    """Step and value of the checkpoint that is loaded, whose tensors must belong to them."""
    try:
        tensors, state, _ = checkpoint.load(folder)
    except CheckpointError:
        return None
    assert torch.equal(tensors["model.weight"], torch.full((3, 4), float(state["step"])))
    return state["step"], state["value"]


SAVES = {
    "two kept": ([(1, 0), (2, 0), (3, 0), (4, 0)], 2),
    "one kept": ([(1, 0), (2, 0), (3, 0)], 1),
    "a step again": ([(1, 0), (1, 1), (1, 1), (2, 0)], 2),
}


def recorded(folder: Path, saves: list[tuple[int, int]], keep: int) -> Disk:
    """The power losses while checkpoints are saved, each with how many had been."""
    folder.mkdir()
    disk = Disk(folder)
    with disk.recording():
        for number, saved in enumerate(saves):
            disk.completed = number
            save(folder / "last", *saved, keep=keep)
        disk.completed = len(saves)
    return disk


@pytest.mark.parametrize(("saves", "keep"), SAVES.values(), ids=SAVES)
@pytest.mark.filterwarnings("ignore:.*Going back to:UserWarning")
def test_completed_checkpoint_is_there_after_any_power_loss(tmp_path, saves, keep):
    disk = recorded(tmp_path / "run", saves, keep)
    assert len(disk.losses) > 30
    for number, (completed, tree) in enumerate(disk.losses):
        folder = restored(tree, tmp_path / str(number)) / "last"
        assert found(folder) in [None, *saves][completed : completed + 2]
        save(folder, 9, keep=keep)
        assert found(folder) == (9, 0)
        assert len(list(folder.iterdir())) <= keep


class ForgetfulOs:
    """The os module, which does not sync files, or folders."""

    def __init__(self, forgotten) -> None:
        self.forgotten = forgotten

    def __getattr__(self, name):
        return getattr(os, name)

    def fsync(self, descriptor: int) -> None:
        if not self.forgotten(os.fstat(descriptor).st_mode):
            os.fsync(descriptor)


@pytest.mark.parametrize("forgotten", [stat.S_ISREG, stat.S_ISDIR], ids=["of files", "of folders"])
@pytest.mark.filterwarnings("ignore:.*Going back to:UserWarning")
def test_missing_sync_would_be_seen(tmp_path, monkeypatch, forgotten):
    for module in (checkpoint, runs):
        monkeypatch.setattr(module, "os", ForgetfulOs(forgotten))
    saves, keep = SAVES["one kept"]
    disk = recorded(tmp_path / "run", saves, keep)
    left = [
        (completed, found(restored(tree, tmp_path / str(number)) / "last"))
        for number, (completed, tree) in enumerate(disk.losses)
    ]
    assert any(step not in [None, *saves][done : done + 2] for done, step in left)


def test_checkpoint_a_killed_process_had_renamed_is_synced_when_it_is_saved_again(
    tmp_path, monkeypatch
):
    folder = tmp_path / "run" / "last"
    folder.mkdir(parents=True)
    save(folder, 1)
    sync = checkpoint.sync_directory

    def killed_after_rename(path: Path) -> None:
        if path == folder:
            raise KeyboardInterrupt
        sync(path)

    disk = Disk(tmp_path / "run")
    with disk.recording():
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "sync_directory", killed_after_rename)
            with pytest.raises(KeyboardInterrupt):
                save(folder, 2)
        save(folder, 2)
        disk.completed = True
    trees = [tree for completed, tree in disk.losses if completed]
    assert trees
    for number, tree in enumerate(trees):
        assert found(restored(tree, tmp_path / str(number)) / "last") == (2, 0)


@pytest.fixture(scope="module")
def lossy(tmp_path_factory) -> tuple[Run, Disk]:
    """A run that was stopped twice, so that it has forgotten events, and its power losses.

    Each is noted with the step of the last checkpoint that was completed.
    """
    folder = tmp_path_factory.mktemp("disk")
    disk = Disk(folder)
    disk.completed = 0
    real = saving.save

    def noted(folder: Path, update, at, **options) -> None:
        real(folder, update, at, **options)
        disk.completed = at.step if folder.name == "last" else disk.completed

    with pytest.MonkeyPatch.context() as patch, disk.recording():
        patch.setattr(saving, "save", noted)
        run = Run.create(folder / "new", TINY)
        states = [train.train(run, compute=ON_CPU, report=stop_at(1, 3)) for _ in range(3)]
    assert states == ["interrupted", "interrupted", "finished"]
    return run, disk


def stop_at(*steps: int):
    def report(progress: train.Progress) -> None:
        if progress.step in steps:
            os.kill(os.getpid(), signal.SIGTERM)

    return report


@pytest.mark.filterwarnings("ignore:.*Going back to:UserWarning")
def test_run_after_any_power_loss_has_a_checkpoint_and_the_events_before_it(tmp_path, lossy):
    whole, disk = lossy
    events = without_time(whole.events())
    assert {completed for completed, _ in disk.losses} == {0, 1, 2, 3, 4}
    for number, (completed, tree) in enumerate(disk.losses):
        run = Run.create(restored(tree, tmp_path / str(number)) / "new", TINY)
        step, num_events = position(run.path / "checkpoints" / "last")
        assert step >= completed
        run.truncate(num_events)
        assert without_time(run.events()) == events[:num_events]
        assert run.status["state"] in STATES


def position(folder: Path) -> tuple[int, int]:
    """The step, and the number of events before it, that a run would go on from."""
    if checkpoint.is_empty(folder):
        return 0, 0
    state = checkpoint.load(folder)[1]
    return state["position"]["step"], state["num_events"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Going back to:UserWarning", "ignore:.*taking the run over")
def test_run_after_any_power_loss_ends_with_the_same_bits(tmp_path, lossy):
    whole, disk = lossy
    for number, (_, tree) in enumerate(disk.losses):
        run = Run.create(restored(tree, tmp_path / str(number)) / "new", TINY)
        assert train.train(run, compute=ON_CPU) == "finished"
        assert_same(run, whole)
