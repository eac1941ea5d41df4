"""Runs side by side: what is finished stays, what fails is recorded, interrupts lose nothing."""

import os
import signal

import pytest
import torch

from normlab.lab import checkpoint
from normlab.lab.experiment import Experiment, ExperimentError, Sweep
from normlab.lab.sweep import Activity, canonical, run_all

TINY = Experiment(data="digits", num_train=64, num_validation=32, batch_size=16, epochs=2)


def interrupt_once(when):
    """What presses Ctrl-C the first time something holds."""
    pressed = []

    def watch(activity: Activity) -> None:
        if not pressed and when(activity):
            pressed.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    return watch


def test_norms_that_do_not_use_the_batch_are_run_once():
    swept = Sweep.grid("", TINY, norm=["batch", "group"], norm_batch_size=[2, 4, 16]).experiments
    kept = [(e.norm, e.norm_batch_size) for e in canonical(swept)]
    assert kept == [("batch", 2), ("batch", 4), ("batch", None), ("group", None)]


def test_norm_that_cannot_slice_a_batch_is_refused():
    with pytest.raises(
        ExperimentError, match="all 16 images computed together, not 2; use norm bat"
    ):
        canonical([TINY.replace(norm="torch_bn", norm_batch_size=2)])


def test_sweeps_add_up_without_repetition():
    first = Sweep.grid("one", TINY, seed=[0, 1])
    both = first + Sweep.grid("two", TINY, seed=[1, 2])
    assert both.title == "one"
    assert [e.seed for e in both.experiments] == [0, 1, 2]


def test_finished_runs_are_not_repeated(tmp_path):
    experiments = [TINY, TINY.replace(seed=1)]
    runs, ended = run_all(experiments[:1], tmp_path, jobs=1, device="cpu")
    before = (runs[0].path / "metrics.jsonl").read_bytes()
    seen: list[Activity] = []
    runs, ended = run_all(experiments, tmp_path, jobs=2, device="cpu", watch=seen.append)
    assert ended is None
    assert [r.status["state"] for r in runs] == ["finished", "finished"]
    assert (runs[0].path / "metrics.jsonl").read_bytes() == before
    assert seen[-1].runs_done == 2


def test_failing_runs_do_not_stop_the_others(tmp_path):
    experiments = [TINY.replace(batch_size=128), TINY]
    runs, _ = run_all(experiments, tmp_path, jobs=1, device="cpu")
    assert [r.status["state"] for r in runs] == ["failed", "finished"]
    assert "do not fill one batch of 128" in runs[0].status["cause"]


def test_diverged_run_is_not_tried_again(tmp_path):
    wild = TINY.replace(learning_rate=1e6, norm="none")
    runs, _ = run_all([wild], tmp_path, jobs=1, device="cpu")
    assert runs[0].status["state"] == "diverged"
    before = (runs[0].path / "status.json").read_bytes()
    run_all([wild], tmp_path, jobs=1, device="cpu")
    assert (runs[0].path / "status.json").read_bytes() == before


def test_run_whose_process_dies_is_recorded_and_the_others_go_on(tmp_path, monkeypatch):
    source = "import os, signal\ndef load(what, split):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "deadly.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    experiments = [TINY.replace(data="mine.deadly"), TINY]
    runs, _ = run_all(experiments, tmp_path / "runs", jobs=1, device="cpu")
    assert [r.status["state"] for r in runs] == ["failed", "finished"]
    assert "ended by SIGKILL; the machine may be out of memory" in runs[0].status["cause"]


def test_sweep_interrupted_before_training_begins_can_go_on(tmp_path):
    interrupt = interrupt_once(lambda activity: TINY.id in activity.running)
    runs, ended = run_all([TINY], tmp_path, jobs=1, device="cpu", watch=interrupt)
    assert ended == signal.SIGINT
    assert runs[0].status["state"] == "interrupted"
    runs, _ = run_all([TINY], tmp_path, jobs=1, device="cpu")
    assert runs[0].status["state"] == "finished"


def test_interrupted_sweep_goes_on_to_the_same_result(tmp_path):
    long = TINY.replace(epochs=6)
    whole, _ = run_all([long], tmp_path / "whole", jobs=1, device="cpu")

    interrupt = interrupt_once(lambda activity: activity.running.get(long.id) is not None)
    runs, ended = run_all([long], tmp_path / "cut", jobs=1, device="cpu", watch=interrupt)
    assert ended == signal.SIGINT
    assert runs[0].status["state"] == "interrupted"
    runs, ended = run_all([long], tmp_path / "cut", jobs=1, device="cpu")
    assert ended is None
    ours, theirs = (
        checkpoint.load(r.path / "checkpoints" / "last")[0] for r in (runs[0], whole[0])
    )
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
