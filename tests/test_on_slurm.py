"""Job scripts and arrays of SLURM, without SLURM."""

import dataclasses
import os
import shlex
import subprocess
import sys
import time

import pytest

from normlab.lab import on_slurm, sweep_file
from normlab.lab.compute import Compute
from normlab.lab.experiment import Experiment, Sweep
from normlab.lab.runs import find
from normlab.lab.schedule import Schedule

TINY = Experiment(data="digits", num_train=64, num_validation=32, batch_size=16, epochs=1)
SWEEP = Sweep.grid("Which?", TINY, norm=["layer", "group"], seed=[0, 1])


def test_script_says_what_was_asked(tmp_path):
    schedule = Schedule(
        on="slurm", jobs=3, slurm=("partition=gpu", "gpus-per-node=1", "comment=a b; rm x"),
        retry_failed=True, run_timeout=60.0,
    )  # fmt: skip
    compute = Compute(processes=2, channels_last=True, track=("wandb", "trackio"))
    array = on_slurm.write(SWEEP, tmp_path / "out", compute, schedule)
    lines = array.script.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    assert "#SBATCH --array=1-3" in lines
    assert "#SBATCH --gpus-per-node=1" in lines
    assert "#SBATCH --comment='a b; rm x'" in lines
    words = shlex.split(lines[-1])
    assert words[0] == "exec"
    assert words[-2:] == ["--part", "$SLURM_ARRAY_TASK_ID/3"]
    assert words[words.index("--track") :][:3] == ["--track", "wandb", "trackio"]
    for flag in (["--processes", "2"], ["--run-timeout", "60.0"]):
        assert words[words.index(flag[0]) :][:2] == flag
    assert {"--channels-last", "--retry-failed"} <= set(words)
    assert not {"--on", "--slurm", "--jobs", "--device"} & set(words)
    assert sweep_file.load(tmp_path / "out" / "slurm" / "sweep.json") == SWEEP


def test_there_are_no_more_tasks_than_runs(tmp_path):
    array = on_slurm.write(SWEEP, tmp_path, Compute(), Schedule(on="slurm"))
    assert [command[-1] for command in array.commands] == ["1/4", "2/4", "3/4", "4/4"]


def test_tasks_of_the_script_run_their_parts(tmp_path):
    """The second task has the run that cannot be."""
    out = tmp_path / "has spaces"
    sweep = Sweep.grid("", TINY, batch_size=[16, 128])
    array = on_slurm.write(sweep, out, Compute(device="cpu"), Schedule(on="slurm", jobs=2))
    for task, code, states in (("1", 0, ["finished"]), ("2", 1, ["failed", "finished"])):
        done = subprocess.run(
            ["bash", str(array.script)], env={**os.environ, "SLURM_ARRAY_TASK_ID": task},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert sorted(run.status["state"] for run in find(out)[0]) == states
    assert "0 of 1 finished, 1 failed" in done.stderr
    assert not (out / "report.html").exists()  # a part is not the answer


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit's own
def test_submitit_runs_the_commands_of_an_array(tmp_path):
    pytest.importorskip("submitit")
    schedule = Schedule(on="slurm", jobs=2)
    array = on_slurm.write(SWEEP, tmp_path, Compute(), schedule)
    parts = [command[-1] for command in array.commands]
    assert parts == ["1/2", "2/2"]
    files = [tmp_path / part.replace("/", "-") for part in parts]
    commands = [["touch", str(file)] for file in files]
    submitted = on_slurm.submit(
        dataclasses.replace(array, commands=commands), schedule, cluster="local"
    )
    assert len(submitted.jobs) == 2
    deadline = time.monotonic() + 60
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_settings_that_submitit_knows_go_to_it_and_others_to_sbatch():
    pytest.importorskip("submitit")
    given = Schedule(on="slurm", slurm=("time=60", "partition=gpu", "licenses=matlab"))
    assert on_slurm._parameters(given, "slurm") == {
        "slurm_time": 60,
        "slurm_partition": "gpu",
        "slurm_additional_parameters": {"licenses": "matlab"},
    }


def test_submitit_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    array = on_slurm.write(SWEEP, tmp_path, Compute(), Schedule(on="slurm"))
    with pytest.raises(
        ImportError, match=r"needs submitit: pip install \"normlab\[cluster\]\"; or"
    ):
        on_slurm.submit(array, Schedule(on="slurm"))
