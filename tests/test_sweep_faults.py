"""Sweeps that are killed, share a folder, or have runs that fail: F17, F18, F22, F23, F25, F26."""

import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import fake_trials
import pytest

from normlab.lab import runs as runs_module
from normlab.lab.experiment import Experiment
from normlab.lab.runs import Run, find
from normlab.lab.schedule import Schedule
from normlab.lab.sweep import run_all

HERE = Path(__file__).parent


def seeds(number):
    return [Experiment(norm="layer", seed=seed) for seed in range(number)]


def states(outcome):
    return Counter(outcome.activity.states.values())


def num_starts(root):
    """How often each run was started, by name."""
    return {
        run.path.name: [e["event"] for e in run.events()].count("start") for run in find(root)[0]
    }


@pytest.fixture(scope="module")
def two_hundred(tmp_path_factory):
    """200 runs, of which 10 do not end well."""
    root = tmp_path_factory.mktemp("runs")
    experiments = seeds(200)
    (root / experiments[187].name).mkdir()
    (root / experiments[187].name / "thesis.tex").touch()
    schedule = Schedule(jobs=2, run_timeout=1)
    return root, run_all(experiments, root, schedule=schedule, task="fake_trials:failing")


def test_failing_runs_cost_no_other_f22(two_hundred):
    root, outcome = two_hundred
    assert states(outcome) == {"finished": 190, "diverged": 1, "failed": 9}
    finished = [run for run in find(root)[0] if run.status["state"] == "finished"]
    assert len(finished) == 190
    for run in finished:
        assert [e["event"] for e in run.events()] == ["start", "epoch", "end"]


@pytest.mark.parametrize("seed", fake_trials.FAILURES)
def test_cause_of_a_failure_is_recorded_f22(two_hundred, seed):
    root, outcome = two_hundred
    experiment = seeds(200)[seed]
    assert outcome.activity.causes[experiment.id].startswith(fake_trials.FAILURES[seed][1])
    if fake_trials.FAILURES[seed][0] is not fake_trials._disappears:
        status = Run.open(root / experiment.name).status
        assert status["cause"].startswith(fake_trials.FAILURES[seed][1])
        assert status.get("oom", False) == ("out of memory" in status["cause"])


def test_folder_that_cannot_be_used_is_a_failure_of_that_run_f22(two_hundred):
    _, outcome = two_hundred
    cause = outcome.activity.causes[seeds(200)[187].id]
    assert "is not a run and holds 'thesis.tex'; choose another folder" in cause


def test_failed_runs_are_tried_again_only_when_asked_f22(tmp_path):
    experiments = [Experiment(seed=seed) for seed in (7, 8)]
    first = run_all(experiments, tmp_path, task="fake_trials:failing")
    assert states(first) == {"failed": 1, "finished": 1}
    again = run_all(experiments, tmp_path, task="fake_trials:trial")
    assert states(again) == {"failed": 1, "finished": 1}
    assert again.failed_before == {experiments[0].id}
    retried = run_all(
        experiments, tmp_path, task="fake_trials:trial", schedule=Schedule(retry_failed=True)
    )
    assert states(retried) == {"finished": 2}
    assert not retried.failed_before
    assert set(num_starts(tmp_path).values()) == {1}


DRIVER = """
import pathlib, sys
from normlab.lab.experiment import Experiment
from normlab.lab.schedule import Schedule
from normlab.lab.sweep import run_all
root, task, first, last, jobs = sys.argv[1:]
experiments = [Experiment(norm="layer", seed=s) for s in range(int(first), int(last))]
outcome = run_all(
    experiments, pathlib.Path(root), task=task, schedule=Schedule(jobs=int(jobs))
)
print(*(outcome.activity.states[e.id] for e in experiments))
"""


def drive(root, task, first, last, jobs):
    arguments = [sys.executable, "-c", DRIVER, str(root), task, str(first), str(last), str(jobs)]
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(HERE)},
    )  # fmt: skip


EIGHT = """
import os, pathlib, sys
from normlab.lab.experiment import Experiment
from normlab.lab.schedule import Schedule
from normlab.lab.sweep import canonical, run_all
canonical([Experiment()])  # imports torch, once for all eight
for i in range(8):
    if os.fork() == 0:
        experiments = [Experiment(norm="layer", seed=s) for s in range(7 * i, 7 * i + 50)]
        outcome = run_all(
            experiments, pathlib.Path(sys.argv[1]), task="fake_trials:trial",
            schedule=Schedule(jobs=1),
        )
        os._exit(outcome.count("finished") != 50)
print(*(os.wait()[1] for i in range(8)))
"""


def test_eight_sweeps_share_a_folder_f18(tmp_path):
    """Each has 50 runs, most of which others have, too."""
    done = subprocess.run(
        [sys.executable, "-c", EIGHT, str(tmp_path)], capture_output=True, text=True, timeout=100,
        env={**os.environ, "PYTHONPATH": str(HERE)},
    )  # fmt: skip
    assert done.stdout.split() == ["0"] * 8, done.stderr
    found, damaged = find(tmp_path)
    assert not damaged
    assert sorted(run.experiment.seed for run in found) == list(range(99))
    assert set(num_starts(tmp_path).values()) == {1}
    assert all(len(run.events()) == 3 for run in found)


def test_killed_sweep_goes_on_where_it_was_f23(tmp_path):
    driver = drive(tmp_path, "fake_trials:slow", 0, 20, 2)
    experiments = seeds(20)
    deadline = time.monotonic() + 60
    while sum(_is_finished(tmp_path / e.name) for e in experiments) < 10:
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    driver.kill()
    driver.communicate()
    _wait_until(lambda: not _is_held(tmp_path))  # its workers end, too
    finished = {e.name: _contents(tmp_path / e.name) for e in experiments
                if _is_finished(tmp_path / e.name)}  # fmt: skip
    assert 10 <= len(finished) < 20
    outcome = run_all(experiments, tmp_path, task="fake_trials:trial")
    assert states(outcome) == {"finished": 20}
    assert {name: _contents(tmp_path / name) for name in finished} == finished


def test_processes_of_a_killed_sweep_end_with_it_f23(tmp_path):
    """A run that hangs, with a child of its own, outlives nobody."""
    driver = drive(tmp_path, "fake_trials:hanging", 0, 1, 1)
    pids = tmp_path / seeds(1)[0].name / "pids"
    _wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    driver.kill()
    driver.communicate()
    _wait_until(lambda: not any(_is_alive(int(pid)) for pid in pids.read_text().split()))


def _is_alive(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"  # ended, but nobody has asked


@pytest.mark.parametrize("num", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_stops_runs_after_their_step_and_starts_no_other(tmp_path, num):
    driver = drive(tmp_path, "fake_trials:obedient", 0, 4, 2)
    experiments = seeds(4)
    paths = [tmp_path / e.name for e in experiments[:2]]
    _wait_until(lambda: all(_state(path) == "running" for path in paths))
    driver.send_signal(num)
    driver.communicate(timeout=30)
    assert [_state(tmp_path / e.name) for e in experiments] == [
        "interrupted", "interrupted", None, None,
    ]  # fmt: skip


def test_run_another_process_trains_is_waited_for_f17(tmp_path):
    """`normlab train` has the lock and no claim."""
    experiments = seeds(2)
    run = Run.create(tmp_path, experiments[0])
    elsewhere = []

    def watch(activity):
        elsewhere.append(set(activity.elsewhere))
        if experiments[1].id in activity.states and holder.poll() is None:
            (tmp_path / "go").touch()

    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.path), str(tmp_path / "go")],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with holder:
        assert holder.stdout.readline() == "locked\n"
        outcome = run_all(experiments, tmp_path, task="fake_trials:trial", watch=watch)
    assert states(outcome) == {"finished": 2}
    assert {experiments[0].id} in elsewhere
    assert [e["event"] for e in run.events()] == ["end"]


HOLDER = """
import pathlib, sys, time
from normlab.lab.runs import Run
run = Run.open(pathlib.Path(sys.argv[1]))
with run.lock():
    print("locked", flush=True)
    while not pathlib.Path(sys.argv[2]).exists():
        time.sleep(0.02)
    run.log("end")
    run.set_status("finished")
"""


def test_process_that_ran_out_of_memory_is_replaced_f25(tmp_path):
    experiments = [Experiment(seed=seed) for seed in (1, 87, 2)]
    outcome = run_all(experiments, tmp_path, task="fake_trials:named", schedule=Schedule(jobs=1))
    assert states(outcome) == {"finished": 2, "failed": 1}
    first, second = (Run.open(tmp_path / experiments[i].name).status["pid"] for i in (0, 2))
    assert first != second


def test_one_process_trains_run_after_run(tmp_path):
    experiments = seeds(3)
    run_all(experiments, tmp_path, task="fake_trials:named", schedule=Schedule(jobs=1))
    assert len({run.status["pid"] for run in find(tmp_path)[0]}) == 1


def test_nothing_depends_on_the_clock_f26(tmp_path, monkeypatch):
    """Time that jumps back changes neither names, nor what is run, nor the order of events."""

    class Clock(datetime.datetime):
        hours = 0

        @classmethod
        def now(cls, tz=None):
            Clock.hours -= 5
            return datetime.datetime(2026, 10, 25, tzinfo=tz) + datetime.timedelta(hours=cls.hours)

    monkeypatch.setattr(runs_module, "datetime", Clock)
    monkeypatch.setattr(time, "time", lambda: -1e9)
    experiment = Experiment(norm="layer", seed=1)
    run = Run.create(tmp_path, experiment)
    assert run.path.name == experiment.name == Experiment(norm="layer", seed=1).name
    fake_trials.trial(run, compute=None, report=lambda progress: None)
    assert [e["event"] for e in run.events()] == ["start", "epoch", "end"]
    assert run.status["updated"] < "2026-10-25"
    outcome = run_all([experiment, *seeds(1)], tmp_path, task="fake_trials:trial")
    assert states(outcome) == {"finished": 2}
    assert num_starts(tmp_path)[run.path.name] == 1


def _state(path):
    try:
        return json.loads((path / "status.json").read_text())["state"]
    except FileNotFoundError:
        return None


def _is_finished(path):
    return _state(path) == "finished"


def _contents(path):
    return {p.name: p.read_bytes() for p in path.iterdir() if p.is_file() and p.name != "claim"}


def _is_held(root):
    for run in find(root)[0]:
        try:
            with run.claim():
                pass
        except runs_module.RunInUse:
            return True
    return False


def _wait_until(holds, seconds=30):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
