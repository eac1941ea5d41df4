"""Probes while training: a training they do not touch, interrupted or not."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from normlab.lab import checkpoint, probes, train
from normlab.lab.analysis_probes import probes as read
from normlab.lab.compute import Compute
from normlab.lab.data.batches import Batches
from normlab.lab.experiment import Experiment
from normlab.lab.runs import Run
from normlab.lab.tasks.classification import Input

CPU, ON_CPU = torch.device("cpu"), Compute(device="cpu")
# dropout, Adam's moments, crops and batch statistics: everything a probe could disturb
EXPERIMENT = Experiment(
    data="digits", model="convnet", norm="batch", optimizer="adam", learning_rate=1e-3,
    augment="crop_flip", num_train=96, num_validation=40, batch_size=16, epochs=3, image_size=16,
)  # fmt: skip


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe every second step."""
    monkeypatch.setattr(probes, "EVERY", 2)


def trained(root: Path, experiment: Experiment, report: Any = None) -> Run:
    run = Run.create(root, experiment)
    train.train(run, compute=ON_CPU, report=report)
    return run


def tensors(run: Run) -> dict[str, torch.Tensor]:
    return checkpoint.load(run.path / "checkpoints" / "last")[0]


def events(run: Run, *, probed: bool) -> list[dict[str, Any]]:
    """Events without the seconds they took: the probes, or the others."""
    found = [e for e in run.events() if (e["event"] == "probe") == probed]
    return [{k: v for k, v in e.items() if not k.startswith("seconds")} for e in found]


@pytest.mark.parametrize("norm", ["batch", "torch_bn", "group:32", "none"])
@pytest.mark.usefixtures("often")
def test_training_has_the_same_bits_with_probes_and_without(tmp_path, norm):
    plain = EXPERIMENT.replace(norm=norm)
    runs = trained(tmp_path, plain), trained(tmp_path, plain.replace(probe="*,features"))
    assert events(runs[0], probed=False) == events(runs[1], probed=False)
    assert not events(runs[0], probed=True)
    assert events(runs[1], probed=True)
    ours, theirs = map(tensors, runs)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.usefixtures("often")
def test_parts_of_a_batch_are_recorded_by_the_first(tmp_path):
    e = EXPERIMENT.replace(probe="0", augment="none", epochs=1, accumulate=2)
    found = read(trained(tmp_path, e))
    assert [(p.epoch, p.step, p.samples) for p in found] == [(1, 0, 0), (1, 2, 32), (1, 4, 64)]
    images, _ = train.load_data(e.data, e.image_size, e.validation, e.num_train, e.num_validation)
    first = Batches(images, 16, seed=e.seed, augment="none")[0, 0].images[:8]
    x = Input.of(images).prepare(first, CPU)  # layer 0 adds a border of zeros
    assert found[0].mean == pytest.approx(x.mean().item() * 16**2 / 18**2, rel=1e-5)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("step", [1, 2, 3, 9], ids=lambda s: f"F15: after step {s} of 18")
def test_interrupted_run_has_the_same_probes(tmp_path, step):
    def interrupt(progress: train.Progress) -> None:
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    experiment = EXPERIMENT.replace(probe="*,features")
    whole = trained(tmp_path / "whole", experiment)
    run = trained(tmp_path / "parts", experiment, interrupt)
    assert run.status["state"] == "interrupted"
    assert train.train(run, compute=ON_CPU) == "finished"
    assert events(run, probed=True) == events(whole, probed=True)
    assert events(run, probed=False) == events(whole, probed=False)


@pytest.mark.usefixtures("often")
def test_killed_run_has_the_same_probes(tmp_path):
    """Those written after the last checkpoint are forgotten and made again."""
    experiment = EXPERIMENT.replace(probe="2")
    whole = trained(tmp_path / "whole", experiment)

    class Killed(BaseException):
        pass

    def kill(progress: train.Progress) -> None:
        if progress.step == 11:
            raise Killed

    with pytest.raises(Killed):
        trained(tmp_path / "parts", experiment, kill)
    run = Run.create(tmp_path / "parts", experiment)
    assert [p.step for p in read(run)] == [0, 2, 4, 6, 8, 10]
    train.train(run, compute=ON_CPU)
    assert events(run, probed=True) == events(whole, probed=True)


@pytest.mark.usefixtures("often")
def test_diverging_step_is_recorded(tmp_path):
    run = trained(
        tmp_path,
        EXPERIMENT.replace(
            probe="features", norm="none", optimizer="sgd", learning_rate=1e6, warmup=0.0
        ),
    )
    assert run.status["state"] == "diverged"
    assert read(run)[0].step == 0


@pytest.mark.parametrize(
    ("num_batches", "expected"),
    [
        pytest.param(1, 64, id="1 step an epoch"),
        pytest.param(125, 64, id="125 steps an epoch"),
        pytest.param(1250, 157, id="1250 steps: 8 an epoch"),
    ],
)
def test_probes_are_seldom_enough_to_be_cheap(num_batches, expected):
    recorder = probes.Recorder(nn.Sequential(nn.Identity()), "0")
    due = [step for step in range(1000) if recorder.due(step, num_batches)]
    assert due == list(range(0, 1000, expected))


def test_probe_keeps_the_names_of_runs_without():
    assert Experiment().id == Experiment(probe=None).id != Experiment(probe="features").id
