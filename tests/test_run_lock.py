"""Locks that keep two processes from one run: F17, S18."""

import os
import signal
import subprocess
import sys

import pytest

from normlab.lab.experiment import Experiment
from normlab.lab.runs import Run, RunError, RunInUse


@pytest.fixture
def run(tmp_path) -> Run:
    return Run.create(tmp_path / "runs", Experiment())


HOLDER = """
import pathlib, sys, time
from normlab.lab.runs import Run
with Run.open(pathlib.Path(sys.argv[1])).lock():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_second_process_is_refused_until_the_first_is_gone(run):
    """F17"""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.path)], stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout.readline() == "locked\n"
        refused = rf"is in use by process {child.pid} on {os.uname().nodename}; wait for it"
        with pytest.raises(RunError, match=refused), run.lock():
            pass
        child.send_signal(signal.SIGKILL)
    taken = rf"process {child.pid} on {os.uname().nodename} was killed; taking the run over"
    with pytest.warns(UserWarning, match=taken), run.lock():
        pass
    with run.lock():
        pass


def test_lock_is_refused_twice_in_one_process(run):
    refused = f"in use by process {os.getpid()}"
    with run.lock(), pytest.raises(RunError, match=refused), Run.open(run.path).lock():
        pass


def test_lock_is_freed_by_an_error(run):
    with pytest.raises(KeyError), run.lock():
        raise KeyError
    with run.lock():
        pass


def test_lock_from_before_a_restart_is_taken_over(run):
    """F17"""
    (run.path / "lock").write_text('{"pid": 1, "host": "here", "boot": "earlier"}')
    with (
        pytest.warns(UserWarning, match="process 1 on here, before its last restart, was"),
        run.lock(),
    ):
        pass
    (run.path / "lock").write_text("[]")
    with pytest.warns(UserWarning, match="another process was killed"), run.lock():
        pass


def test_lock_is_not_written_through_a_link(run, tmp_path):
    """S18"""
    (tmp_path / "precious").write_text("data")
    (run.path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(RunError, match="lock: cannot be opened"), run.lock():
        pass
    assert (tmp_path / "precious").read_text() == "data"


def test_claim_is_refused_while_another_has_it_or_trains(run):
    """F18"""
    again = Run.open(run.path)
    for held in (again.claim, again.lock):
        with held(), pytest.raises(RunInUse, match="is in use"), run.claim():
            pass
    with run.claim(), run.lock():  # a sweep claims, its worker trains
        pass


def test_file_system_without_locks_is_said(run, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    said = r"has no locks \(Function not implemented\); use a local folder"
    with pytest.raises(RunError, match=said), run.lock():
        pass
