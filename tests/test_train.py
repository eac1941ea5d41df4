"""Training: what it computes, and that stopping anywhere and resuming changes nothing."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from normlab.lab import checkpoint, models, train
from normlab.lab.compute import Compute
from normlab.lab.experiment import Experiment
from normlab.lab.runs import Run
from normlab.lab.tasks import classification

# dropout, Adam's moments, crops and batch statistics: everything a checkpoint could forget
FORGETFUL = Experiment(
    data="digits", model="convnet", norm="batch", optimizer="adam", learning_rate=1e-3,
    augment="crop_flip", num_train=96, num_validation=40, batch_size=16, epochs=3, image_size=16,
)  # fmt: skip
TINY = Experiment(data="digits", num_train=64, num_validation=32, batch_size=16, epochs=2)
ON_CPU = Compute(device="cpu")


def trained(root: Path, experiment: Experiment, report=None) -> Run:
    run = Run.create(root, experiment)
    train.train(run, compute=ON_CPU, report=report)
    return run


def weights(run: Run, which: str = "last") -> dict[str, torch.Tensor]:
    return checkpoint.load(run.path / "checkpoints" / which)[0]


def without_seconds(run: Run) -> list[dict]:
    return [{k: v for k, v in e.items() if not k.startswith("seconds")} for e in run.events()]


def assert_same(run: Run, other: Run) -> None:
    assert without_seconds(run) == without_seconds(other)
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def signal_at(*steps: int):
    def report(progress: train.Progress) -> None:
        if progress.step in steps:
            os.kill(os.getpid(), signal.SIGTERM)

    return report


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Run:
    return trained(tmp_path_factory.mktemp("whole"), FORGETFUL)


@pytest.mark.parametrize("step", [1, 6, 8, 12, 17], ids=lambda s: f"F15: after step {s} of 18")
def test_interrupted_run_ends_with_the_same_bits(tmp_path, uninterrupted, step):
    run = trained(tmp_path, FORGETFUL, signal_at(step))
    assert run.status["state"] == "interrupted"
    assert train.train(run, compute=ON_CPU) == "finished"
    assert_same(run, uninterrupted)


def test_run_interrupted_at_every_step_ends_with_the_same_bits(tmp_path, uninterrupted):
    run = Run.create(tmp_path, FORGETFUL)
    while train.train(run, compute=ON_CPU, report=signal_at(*range(20))) != "finished":
        pass
    assert_same(run, uninterrupted)


@pytest.mark.parametrize("step", [3, 13], ids=lambda s: f"F01: at step {s}")
def test_killed_run_ends_with_the_same_bits(tmp_path, uninterrupted, step):
    script = f"""
import os, signal, sys, torch
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_train import FORGETFUL, trained
torch.set_num_threads({torch.get_num_threads()})
def kill(progress):
    if progress.step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
trained(Path({str(tmp_path)!r}), FORGETFUL, kill)
"""
    child = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    run = Run.create(tmp_path, FORGETFUL)
    with pytest.warns(UserWarning, match="was killed; taking the run over"):
        assert train.train(run, compute=ON_CPU) == "finished"
    assert_same(run, uninterrupted)


def test_tensorflow_defect_resuming_keeps_statistics_optimizer_and_step(tmp_path):
    run = trained(tmp_path, FORGETFUL, signal_at(4))
    tensors, state, _ = checkpoint.load(run.path / "checkpoints" / "last")
    means = [t for name, t in tensors.items() if name.endswith("running_mean")]
    assert len(means) == 4
    assert all(mean.any() for mean in means)
    assert any(name.startswith("optimizer.") for name in tensors)
    assert (state["position"]["step"], state["position"]["batch"]) == (4, 4)


def test_second_interrupt_stops_at_once(tmp_path):
    def twice(progress: train.Progress) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    run = Run.create(tmp_path, TINY)
    with pytest.raises(KeyboardInterrupt):
        train.train(run, compute=ON_CPU, report=twice)
    assert run.status["state"] == "interrupted"
    assert train.train(run, compute=ON_CPU) == "finished"


def test_finished_run_is_left_alone(tmp_path):
    run = trained(tmp_path, TINY)
    before = without_seconds(run)
    calls = []
    assert train.train(run, compute=ON_CPU, report=calls.append) == "finished"
    assert not calls
    assert without_seconds(run) == before


def test_resuming_with_other_threads_is_said(tmp_path):
    run = trained(tmp_path, TINY, signal_at(2))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        with pytest.warns(
            UserWarning, match=r"threads was \d+, is \d+.*not be the same to the bit"
        ):
            train.train(run, compute=ON_CPU)
    finally:
        torch.set_num_threads(before)


def test_same_seed_gives_the_same_run(tmp_path):
    assert_same(trained(tmp_path / "a", TINY), trained(tmp_path / "b", TINY))


def test_other_seed_gives_another_run(tmp_path):
    runs = trained(tmp_path, TINY), trained(tmp_path, TINY.replace(seed=1))
    assert without_seconds(runs[0]) != without_seconds(runs[1])


def test_events_count_whole_batches_and_whole_sets(tmp_path):
    run = trained(tmp_path, TINY.replace(batch_size=24))
    start, first, second, _, end = run.events()
    assert (start["num_train"], start["num_validation"]) == (64, 32)
    assert (first["samples"], first["step"]) == (48, 2)  # 64 images hold two batches of 24
    assert (second["samples"], second["step"]) == (96, 4)
    assert end["reason"] == "finished"


def test_learning_happens(tmp_path):
    run = trained(tmp_path, TINY.replace(num_train=1000, epochs=4))
    errors = [e["validation_error"] for e in run.events() if e["event"] == "epoch"]
    assert errors[-1] < 40  # chance is 90 %


@pytest.mark.parametrize("norm", ["group", "layer", "none"])
def test_accumulated_parts_equal_the_whole_batch(tmp_path, norm):
    whole = weights(trained(tmp_path, TINY.replace(norm=norm)))
    parts = weights(trained(tmp_path, TINY.replace(norm=norm, accumulate=4)))
    for name in whole:
        # one order of sums for another, over 8 steps
        torch.testing.assert_close(parts[name], whole[name], atol=2e-4, rtol=2e-3)


def test_norm_batch_equals_accumulated_parts(tmp_path):
    base = TINY.replace(norm="batch", epochs=1)
    sliced = weights(trained(tmp_path, base.replace(norm_batch_size=4)))
    parts = weights(trained(tmp_path, base.replace(accumulate=4)))
    learned = [k for k in sliced if k.startswith("model.") and "running" not in k]
    for name in (k for k in learned if "num_batches" not in k):
        torch.testing.assert_close(sliced[name], parts[name], atol=2e-4, rtol=2e-3)


def test_best_checkpoint_is_of_the_epoch_with_the_lowest_error(tmp_path):
    run = trained(tmp_path, TINY.replace(epochs=5, learning_rate=0.3))
    errors = {e["step"]: e["validation_error"] for e in run.events() if e["event"] == "epoch"}
    step = min(errors, key=lambda s: (errors[s], s))
    assert int(checkpoint.load(run.path / "checkpoints" / "best")[2].name) == step
    assert run.status["best_error"] == errors[step]


def test_patience_ends_a_run_that_stopped_improving(tmp_path):
    still = TINY.replace(epochs=50, learning_rate=1e-6, patience=2)
    run = trained(tmp_path, still)
    assert run.events()[-1] == {"event": "end", "reason": "patience"}
    assert run.status["epoch"] == 3  # the first is the best, then two without improvement


def test_weights_to_start_from_are_used(tmp_path):
    first = trained(tmp_path, TINY)
    source = str(first.path)
    second = trained(tmp_path, TINY.replace(weights=source, learning_rate=1e-9, warmup=0.0))
    for name, value in weights(first, "best").items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(weights(second)[name], value, atol=1e-6, rtol=0)


def poisoned(monkeypatch, poison) -> None:
    build = models.build

    def built(*args, **options):
        model = build(*args, **options)
        poison(model)
        return model

    monkeypatch.setattr(models, "build", built)


def nan_loss(model: torch.nn.Module) -> None:
    calls = []

    def forward(module, args, output):
        calls.append(0)
        return output * float("nan") if module.training and len(calls) > 8 else output

    model.register_forward_hook(forward)


def nan_gradient(model: torch.nn.Module) -> None:
    calls = []

    def spoil(gradient):
        calls.append(0)
        return gradient * float("nan") if len(calls) > 6 else gradient

    next(model.parameters()).register_hook(spoil)


def nan_statistic(model: torch.nn.Module) -> None:
    layer = next(m for m in model.modules() if getattr(m, "running_var", None) is not None)
    calls = []

    def spoil(module, args, output):
        calls.append(0)
        if module.training and len(calls) > 7:
            module.running_var[0] = float("nan")

    layer.register_forward_hook(spoil)


@pytest.mark.parametrize(
    ("poison", "message"),
    [
        (nan_loss, r"the loss is not finite at step \d+ \(epoch 2\) on training images \d+, "),
        (nan_gradient, r"the gradient is not finite at step \d+ \(epoch 2\) on training images"),
        (nan_statistic, r"running_var is not finite after epoch 2; lower the learning rate"),
    ],
    ids=["F08: loss", "F08: gradient", "F08: running_var"],
)
def test_run_stops_where_it_diverges_and_keeps_the_good_state(
    tmp_path, monkeypatch, poison, message
):
    poisoned(monkeypatch, poison)
    run = trained(tmp_path, TINY.replace(norm="batch", epochs=4))
    status = run.status
    assert status["state"] == "diverged"
    assert re.search(message, status["cause"])
    tensors, state, _ = checkpoint.load(run.path / "checkpoints" / "last")
    assert state["position"]["epoch"] == 1
    assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())


def test_failure_is_recorded_and_raised(tmp_path):
    run = Run.create(tmp_path, TINY.replace(batch_size=128))
    with pytest.raises(ValueError, match="64 training images do not fill one batch of 128"):
        train.train(run, compute=ON_CPU)
    assert run.status["state"] == "failed"
    assert "choose a batch_size of at most 64" in run.status["cause"]


def test_bytes_saved_count_what_autograd_keeps(tmp_path):
    start = trained(tmp_path, TINY.replace(norm="none", model="convnet")).events()[0]
    model = models.build("convnet", 10, norm="none")
    x = torch.randn(16, 3, 8, 8)
    kept = {}

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, keep):
        classification.loss(model(x), torch.zeros(16, dtype=torch.long))
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    expected = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in own)
    assert start["bytes_saved"] == expected
