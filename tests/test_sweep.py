"""Runs side by side: what is finished stays, what fails is recorded, interrupts lose nothing."""

import os
import signal

import pytest
import torch

from normlab.lab import checkpoint, pool
from normlab.lab.compute import Compute, ComputeError
from normlab.lab.experiment import Experiment, ExperimentError, Sweep
from normlab.lab.schedule import Schedule, ScheduleError, part_of
from normlab.lab.sweep import Activity, canonical, run_all

CPU = {"compute": Compute(device="cpu"), "schedule": Schedule(jobs=1)}
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


def test_norms_without_running_statistics_have_none_to_freeze():
    swept = Sweep.grid("", TINY, norm=["batch", "group"], freeze_statistics=[None, 0.8])
    kept = [(e.norm, e.freeze_statistics) for e in canonical(swept.experiments)]
    assert kept == [("batch", None), ("batch", 0.8), ("group", None)]


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
    runs = run_all(experiments[:1], tmp_path, **CPU).runs
    before = (runs[0].path / "metrics.jsonl").read_bytes()
    seen: list[Activity] = []
    first = []

    def watch(activity: Activity) -> None:
        seen.append(activity)
        if not first:
            first.extend((dict(activity.states), len(activity.running)))

    two = {**CPU, "schedule": Schedule(jobs=2)}
    outcome = run_all(experiments, tmp_path, **two, watch=watch)
    assert outcome.signal is None
    assert [r.status["state"] for r in outcome.runs] == ["finished", "finished"]
    assert (list(first[0]), first[1]) == ([TINY.id], 0)  # told before anything starts
    assert (runs[0].path / "metrics.jsonl").read_bytes() == before
    assert seen[-1].runs_done == 2


def test_failing_runs_do_not_stop_the_others(tmp_path):
    experiments = [TINY.replace(batch_size=128), TINY]
    runs = run_all(experiments, tmp_path, **CPU).runs
    assert [r.status["state"] for r in runs] == ["failed", "finished"]
    assert "do not fill one batch of 128" in runs[0].status["cause"]


def test_diverged_run_is_not_tried_again(tmp_path):
    wild = TINY.replace(learning_rate=1e6, norm="none")
    runs = run_all([wild], tmp_path, **CPU).runs
    assert runs[0].status["state"] == "diverged"
    before = (runs[0].path / "status.json").read_bytes()
    run_all([wild], tmp_path, **CPU)
    assert (runs[0].path / "status.json").read_bytes() == before


def test_run_whose_process_dies_is_recorded_and_the_others_go_on(tmp_path, monkeypatch):
    source = "import os, signal\ndef load(what, split):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "deadly.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    experiments = [TINY.replace(data="mine.deadly"), TINY]
    runs = run_all(experiments, tmp_path / "runs", **CPU).runs
    assert [r.status["state"] for r in runs] == ["failed", "finished"]
    assert "out of memory, most likely: its process was ended by SIGKILL" in runs[0].status["cause"]


def test_sweep_interrupted_before_training_begins_can_go_on(tmp_path):
    interrupt = interrupt_once(lambda activity: TINY.id in activity.running)
    outcome = run_all([TINY], tmp_path, **CPU, watch=interrupt)
    assert outcome.signal == signal.SIGINT
    assert outcome.runs[0].status["state"] == "interrupted"
    runs = run_all([TINY], tmp_path, **CPU).runs
    assert runs[0].status["state"] == "finished"


def test_interrupted_sweep_goes_on_to_the_same_result(tmp_path):
    long = TINY.replace(epochs=6)
    whole = run_all([long], tmp_path / "whole", **CPU).runs

    interrupt = interrupt_once(lambda activity: activity.running.get(long.id) is not None)
    outcome = run_all([long], tmp_path / "cut", **CPU, watch=interrupt)
    assert outcome.signal == signal.SIGINT
    assert outcome.runs[0].status["state"] == "interrupted"
    outcome = run_all([long], tmp_path / "cut", **CPU)
    assert outcome.signal is None
    ours, theirs = (
        checkpoint.load(r.path / "checkpoints" / "last")[0] for r in (outcome.runs[0], whole[0])
    )
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_run_of_two_processes_is_a_run_of_a_sweep(tmp_path):
    outcome = run_all([TINY], tmp_path, compute=Compute(device="cpu", processes=2))
    assert outcome.count("finished") == 1


def test_parts_are_all_runs_once():
    parts = [part_of(range(10), f"{k}/3") for k in (1, 2, 3)]
    assert parts == [(0, 3, 6, 9), (1, 4, 7), (2, 5, 8)]
    assert part_of(range(2), "3/3") == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"jobs": 0}, "jobs must be at least 1, got 0"),
        ({"run_timeout": 0.0}, "run_timeout must be more than 0 seconds, got 0"),
        ({"part": "0/3"}, "K/N with K from 1 to N, as 3/16, got '0/3'"),
        ({"part": "4/3"}, "K/N with K from 1 to N, as 3/16, got '4/3'"),
        ({"part": "a"}, "got 'a'"),
        ({"slurm": ("time=1",)}, "slurm and dry_run are for on slurm, not on here"),
        ({"on": "slurm", "slurm": ("time",)}, "takes key=value, as partition=gpu, got 'time'"),
        ({"on": "slurm", "slurm": ("a=b\n#SBATCH --uid=0",)}, "takes key=value"),
        ({"on": "slurm", "slurm": ("-x=1",)}, "takes key=value"),
        ({"on": "slurm", "part": "1/2"}, "makes the parts itself; leave out part"),
    ],
)
def test_impossible_schedule_is_refused(settings, message):
    with pytest.raises(ScheduleError, match=message):
        Schedule(**settings)


def test_unknown_tracker_is_refused():
    with pytest.raises(ComputeError, match="no tracker 'wand'; there are tensorboard, trackio, w"):
        Compute(track=("wand",))


@pytest.mark.parametrize(
    ("cores", "settings", "fitting"),
    [
        (8, {}, 8),
        (8, {"processes": 2}, 4),
        (8, {"workers": 3}, 2),
        (8, {"processes": 2, "workers": 2}, 2),
        (2, {"processes": 4}, 1),
        (8, {"workers": 0}, 8),
    ],
)
def test_as_many_runs_as_have_cores(monkeypatch, cores, settings, fitting):
    monkeypatch.setattr(pool, "num_cores", lambda: cores)
    assert pool._fitting(Compute(device="cpu", **settings)) == fitting


def test_cores_of_a_share_are_believed(monkeypatch):
    monkeypatch.setenv("NORMLAB_CORES", "3")
    assert pool.num_cores() == 3
    monkeypatch.setenv("NORMLAB_CORES", "many")
    assert pool.num_cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("visible", "processes", "shares"),
    [
        ("", 1, ["0", "1", "2", "3"]),
        ("", 2, ["0,1", "2,3"]),
        ("", 3, ["0,1,2"]),
        ("", 8, ["0,1,2,3"]),
        ("4,5,6,7", 2, ["4,5", "6,7"]),
    ],
)
def test_runs_share_out_the_gpus(monkeypatch, visible, processes, shares):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert pool._gpus(Compute(processes=processes)) == shares


@pytest.mark.parametrize(
    ("error", "oom"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 10 bytes"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_mean_out_of_memory_f25(error, oom):
    assert pool.is_out_of_memory(error) is oom
