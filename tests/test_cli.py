"""Every command once, for real, and what a mistake on the command line gets."""

import dataclasses
import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from normlab import cli, launch
from normlab.lab import on_slurm
from normlab.lab.compute import Compute
from normlab.lab.experiment import Experiment, ExperimentError, Sweep
from normlab.lab.schedule import Schedule

TINY = ["--data", "digits", "--num-train", "64", "--num-validation", "32", "--batch-size", "16",
        "--epochs", "1"]  # fmt: skip


def normlab(*arguments: object) -> int:
    return cli.main([str(a) for a in arguments])


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")


@pytest.fixture
def run(capsys) -> Path:
    assert normlab("train", *TINY, "--out", "here") == 0
    capsys.readouterr()
    return next(Path("here").iterdir())


def test_train_writes_a_run_and_says_its_error(capsys):
    assert normlab("train", *TINY) == 0
    assert "best validation error" in capsys.readouterr().out
    assert {p.name for p in next(Path("runs").iterdir()).iterdir()} >= {
        "experiment.json", "metrics.jsonl", "checkpoints", "environment.json", "status.json",
    }  # fmt: skip


def test_compare_sweeps_fields_with_several_values_and_reports(capsys):
    arguments = ("compare", *TINY, "--norm", "batch", "gn:4", "--seed", 0, 1, "--device", "cpu")
    assert normlab(*arguments, "--jobs", 2) == 0
    out = capsys.readouterr().out
    assert "4 of 4" in out
    assert "Validation error" in out
    assert "report: runs/report.html" in out
    assert "<svg" in Path("runs/report.html").read_text()
    assert normlab(*arguments) == 0
    assert "4 of 4 runs were finished before" in capsys.readouterr().out


def test_evaluate_prints_scores_and_confusion(run, capsys):
    assert normlab("evaluate", run, "--split", "train", "validation") == 0
    out = capsys.readouterr().out
    assert "micro-F1" in out
    assert "Confusion, validation" in out
    assert normlab("evaluate", run, "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    assert sum(map(sum, scores["validation"]["confusion"])) == 32


def test_predict_writes_a_class_for_every_line(run, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64))
    np.savetxt("in.csv", pixels, fmt="%d", delimiter=",")
    assert normlab("predict", run, "in.csv") == 0
    assert "3 images: in.predictions.csv" in capsys.readouterr().out
    assert len(Path("in.predictions.csv").read_text().split()) == 3


def test_sweep_runs_the_sweep_of_a_file(capsys):
    Path("mine.py").write_text(
        "from normlab import Experiment, Sweep\n"
        "base = Experiment(data='digits', num_train=64, num_validation=32, epochs=1)\n"
        "SWEEP = Sweep.grid('Which?', base, note='Only a test.', norm=['group', 'none'])\n"
    )
    assert normlab("sweep", "mine.py", "--jobs", 1) == 0
    page = Path("runs/mine/report.html").read_text()
    assert "Which?" in page
    assert "Only a test." in page


def test_report_is_made_of_runs_that_are_there(run, capsys):
    (run.parent / "broken").mkdir()
    (run.parent / "broken" / "experiment.json").write_text("{")
    assert normlab("report", run.parent, "--out", "page.html", "--title", "Mine & yours") == 0
    page = Path("page.html").read_text()
    assert "Mine &amp; yours" in page
    assert "broken" in page


def test_norms_lists_the_catalogue(capsys):
    assert normlab("norms") == 0
    assert "batch_instance, bin" in capsys.readouterr().out


def test_doctor_describes_the_machine(capsys):
    assert normlab("doctor") == 0
    out = capsys.readouterr().out
    assert "torch" in out
    assert "device" in out


def test_data_names_what_can_be_fetched(capsys):
    assert normlab("data", "imagenet") != 0
    assert "there are cifar10, cifar100, fashion_mnist, mnist, svhn" in capsys.readouterr().err


def test_data_without_a_name_lists_the_sets(capsys):
    assert normlab("data") == 0
    assert re.search(r"cifar10 +170 +no", capsys.readouterr().out)


def test_several_values_in_a_file_are_for_compare(capsys):
    Path("s.yaml").write_text("norm: [group, none]\nmilestones: [0.2, 0.4]\n")
    assert normlab("train", "--config", "s.yaml") == 2
    assert "norm has 2 values; give one, or use compare" in capsys.readouterr().err
    Path("t.yaml").write_text("milestones: [0.2, 0.4]\n")
    assert normlab("train", *TINY, "--config", "t.yaml") == 0
    experiment = json.loads(next(Path("runs").glob("*/experiment.json")).read_text())
    assert experiment["milestones"] == [0.2, 0.4]


def test_data_set_that_is_not_there_says_how_to_get_it(capsys):
    assert normlab("train", "--data", "mnist", "--epochs", 1) == 1
    assert "normlab data mnist" in capsys.readouterr().err


def test_settings_come_from_a_file_and_flags_win(capsys):
    fields = {"data": "digits", "num-train": 64, "num_validation": 32, "batch_size": 16}
    Path("s.json").write_text(json.dumps({**fields, "epochs": 3, "norm": "layer"}))
    assert normlab("train", "--config", "s.json", "--epochs", "1") == 0
    experiment = json.loads(next(Path("runs").glob("*/experiment.json")).read_text())
    assert (experiment["epochs"], experiment["norm"], experiment["num_train"]) == (1, "layer", 64)


def test_own_data_needs_no_edit_of_any_source(capsys):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 12, 12, 3), dtype=np.uint8)
    np.savez("mine.npz", images=images, labels=np.arange(60) % 3)
    assert normlab("compare", "--data", "npz:mine.npz", "--norm", "group", "--batch-size", 8,
                   "--epochs", 1, "--seed", 0, "--jobs", 1) == 0  # fmt: skip
    assert "npz:mine.npz" in Path("runs/report.html").read_text()


# number, arguments, exit code, message
MISTAKES = [
    ("41: option", ["train", "--learning-rat", "1"], 2, r"--learning-rate"),
    ("41: command", ["trian"], 2, r"train"),
    ("42: field", ["train", "--config", "field.yaml"], 2, r"field\.yaml: unknown field 'nrom'; did "
     r"you mean 'norm'"),
    ("43: type", ["train", "--epochs", "many"], 2, r"(?i)epochs.*int|invalid"),
    ("43: type in a file", ["train", "--config", "type.yaml"], 2,
     r"--config: epochs must be a whole number, got 'many'"),
    ("50: file", ["train", "--config", "none.yaml"], 2, r"none\.yaml: cannot be read: No such"),
    ("50: no file", ["train", "--config"], 2, r"--config needs a YAML or JSON file"),
    ("52: rate 0", ["train", "--learning-rate", "0"], 2, r"learning_rate must be greater than 0"),
    ("52: rate -1", ["train", "--learning-rate", "-1"], 2, r"greater than 0 .*, got -1\.0"),
    ("52: rate nan", ["train", "--learning-rate", "nan"], 2, r"learning_rate must be .*, got nan"),
    ("53: epochs", ["train", "--epochs", "0"], 2, r"epochs must be at least 1 .*, got 0"),
    ("53: many epochs", ["train", "--epochs", "1000000000"], 2, r"at most 100000, got 1000000000"),
    ("54: batch 0", ["train", "--batch-size", "0"], 2, r"batch_size must be at least 1"),
    ("54: 0 batches", ["train", "--data", "digits", "--batch-size", "8192"], 1,
     r"1347 training images do not fill one batch of 8192; choose a batch_size of at most 1347"),
    ("55: seed", ["train", "--seed", "-1"], 2, r"seed must be at least 0"),
    ("55: large seed", ["train", "--seed", str(2**64)], 2, r"seed must be .*, got 184467440737095"),
    ("56: device", ["train", "--device", "cuda:9"], 2, r"device 'cuda:9' is not there; this mach"),
    ("56: word", ["compare", "--device", "gpu"], 2, r"device 'gpu' is not there; .* has cpu"),
    ("57: out", ["train", *TINY, "--out", "file.txt"], 1, r"file\.txt.*cannot be made"),
    ("57: out of a sweep", ["compare", *TINY, "--norm", "none", "--seed", "0", "--out", "file.txt"],
     1, r"0 of 1 finished, 1 failed: none-b16-s0-\w+: file\.txt.*cannot be made"),
    ("59: empty", ["compare", "--norm"], 2, r"(?i)norm"),
    ("59: milestones", ["train", "--milestones", "0.5", "0.1"], 2, r"milestones must be rising"),
    ("norm", ["train", "--norm", "grup"], 2, r"norm 'grup': there are batch, sync_batch, ghost"),
    ("norm option", ["train", "--norm", "group:x"], 2, r"num_groups must be a whole number, got"),
    ("groups", ["train", "--norm", "group:3"], 2, r"num_channels \(16\) must be divisible by"),
    ("all layers", ["train", "--norm", "group:24"], 2,
     r"7 of 7 norms cannot become 'group:24': 1: num_channels \(16\) must"),
    ("model", ["train", "--model", "cifar_resnet:9"], 2, r"the number of layers is 6n\+2"),
    ("data", ["train", "--data", "digitz"], 2, r"no module normlab\.lab\.data\.digitz; did you"),
    ("slices", ["train", "--norm-batch-size", "5"], 2, r"does not divide the 32 images computed"),
    ("accumulate", ["train", "--accumulate", "5"], 2, r"does not split into accumulate=5 equal"),
    ("jobs", ["compare", "--jobs", "0"], 2, r"jobs must be at least 1, got 0"),
    ("part", ["compare", "--part", "3/2"], 2, r"part must be K/N with K from 1 to N.*got '3/2'"),
    ("on", ["compare", "--on", "moon"], 2, r"(?i)on.*here,ray,slurm|invalid choice"),
    ("slurm", ["compare", "--slurm", "time=1"], 2, r"slurm and dry_run are for on slurm"),
    ("processes", ["train", "--processes", "0"], 2, r"processes must be 1 to 65536, got 0"),
    ("tracker", ["train", "--track", "wand"], 2, r"no tracker 'wand'; there are tensorboard, tr"),
    ("run", ["evaluate", "nowhere"], 1, r"nowhere is not a run: it has no experiment\.json"),
    ("sweep file", ["sweep", "none.py"], 2, r"none\.py is not a Python file; see experiments/"),
    ("sweep", ["sweep", "empty.py"], 2, r"empty\.py has no SWEEP = Sweep\(\.\.\.\)"),
    ("scale", ["sweep", "empty.py", "--scale", "full"], 2, r"empty\.py has no FULL = Sweep"),
    ("sweep of JSON", ["sweep", "none.json"], 2, r"none\.json: cannot be read: No such file"),
    ("weights", ["train", *TINY, "--weights", "file.txt"], 1, r"file\.txt.*"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "message"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES]
)
def test_mistake_is_explained_without_traceback(capsys, arguments, code, message):
    Path("field.yaml").write_text("nrom: group\n")
    Path("type.yaml").write_text("epochs: many\n")
    Path("file.txt").write_text("precious")
    Path("empty.py").write_text("")
    before = contents()
    assert normlab(*arguments) == code
    printed = capsys.readouterr()
    text = " ".join((printed.out + printed.err).split())
    assert re.search(message, text), text
    assert "Traceback" not in text
    assert {k: v for k, v in contents().items() if k in before} == before


def contents() -> dict[str, str]:
    files = (p for p in Path().rglob("*") if p.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_unfinished_run_is_taken_up_only_when_asked(capsys):
    assert normlab("train", *TINY[:-1], "2", "--batch-size", 128) == 1
    capsys.readouterr()
    assert normlab("train", *TINY[:-1], "2", "--batch-size", 128) == 2
    assert "holds this run, failed; add --resume to go on with it" in capsys.readouterr().err
    assert normlab("train", *TINY[:-1], "2", "--batch-size", 128, "--resume") == 1


def test_failed_runs_of_a_comparison_are_counted_with_their_cause(capsys):
    arguments = (*TINY, "--batch-size", 128, "--norm", "group", "layer", "--seed", 0, "--jobs", 1)
    assert normlab("compare", *arguments) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "0 of 2 finished, 2 failed: group-b128-s0-" in error
    assert "and 1 more: " in error
    assert "64 training images do not fill one batch of 128" in error
    assert error.endswith("--retry-failed tries them again")
    statuses = [p.read_bytes() for p in Path("runs").glob("*/status.json")]
    assert normlab("compare", *arguments) == 1
    assert "2 of them failed before and were left alone" in capsys.readouterr().err
    assert [p.read_bytes() for p in Path("runs").glob("*/status.json")] == statuses


def test_sweep_of_two_hundred_counts_what_finished_f22(capsys, monkeypatch):
    """One diverged, one of a kind failed: the words and the code are those of the others."""
    sweep = Sweep.grid("Which?", Experiment(norm="layer"), seed=range(5, 9))
    schedule = Schedule(run_timeout=60)
    with pytest.raises(launch.RunsFailed) as failed:
        launch.run_sweep(
            sweep, Path("out"), Compute(device="cpu"), schedule, task="fake_trials:failing"
        )
    assert "3 of 4 finished, 1 failed:" in str(failed.value)
    assert cli._explain(failed.value, Console(stderr=True)) == 1


def test_damaged_run_is_a_failure_among_the_others_f29(capsys):
    arguments = ("compare", *TINY, "--norm", "group", "layer", "--seed", 0, "--jobs", 1)
    assert normlab(*arguments) == 0
    (damaged,) = Path("runs").glob("layer*/status.json")
    damaged.write_text("{")
    capsys.readouterr()
    assert normlab(*arguments) == 1
    assert "1 of 2 finished, 1 failed:" in capsys.readouterr().err
    assert "damaged, not JSON" in Path("runs/report.html").read_text()


def test_settings_of_computing_and_of_schedules_are_flags(capsys):
    for command in ("compare", "sweep"):
        assert normlab(command, "--help") == 0
        shown = capsys.readouterr().out
        settings = (*dataclasses.fields(Compute), *dataclasses.fields(Schedule))
        flags = {f"--{field.name.replace('_', '-')}" for field in settings}
        assert {flag for flag in flags if flag in shown} == flags
    assert normlab("train", "--help") == 0
    shown = capsys.readouterr().out
    assert "--processes" in shown
    assert "--jobs" not in shown


def test_scale_full_is_the_other_sweep_of_a_file(capsys):
    Path("mine.py").write_text(
        "from normlab import Experiment, Sweep\n"
        "base = Experiment(data='digits', num_train=64, num_validation=32, epochs=1)\n"
        "SWEEP = Sweep.grid('small', base, seed=[1, 2, 3])\n"
        "FULL = Sweep.grid('the whole', base, seed=[0])\n"
    )
    assert normlab("sweep", "mine.py", "--scale", "full", "--jobs", 1) == 0
    assert "the whole" in Path("runs/mine_full/report.html").read_text()
    assert len(list(Path("runs/mine_full").glob("*/experiment.json"))) == 1


def test_slurm_script_is_written_where_there_is_no_slurm(capsys, monkeypatch):
    monkeypatch.setattr(on_slurm.shutil, "which", lambda name: None)
    arguments = ("compare", *TINY, "--norm", "group", "layer", "--seed", 0, "--on", "slurm")
    assert normlab(*arguments, "--slurm", "partition=gpu", "time=60") == 0
    out = capsys.readouterr().out
    assert "there is no sbatch on this machine; 2 tasks are written down" in out
    script = Path("runs/slurm/sweep.sbatch")
    assert f"sbatch {script.resolve()}" in out
    assert "#SBATCH --partition=gpu" in script.read_text()
    assert not list(Path("runs").glob("*/experiment.json"))


def test_interrupted_sweep_has_the_exit_code_of_its_signal_f15():
    arguments = [sys.executable, "-m", "normlab.cli", "compare", "--data", "digits", "--norm",
                 "group", "--seed", "0", "--jobs", "1"]  # fmt: skip
    started = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(Path("runs").glob("*/environment.json")):  # it trains
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    out, err = started.communicate(timeout=60)
    assert started.returncode == 128 + signal.SIGTERM, err
    assert "interrupted with 0 of 1 finished; the same command goes on" in out


@pytest.mark.parametrize("name", ["../x", "CON", "a" * 300, "a\nb", "😀", "<script>"], ids=ascii)
def test_run_names_are_safe_file_names_58(name):
    path = Experiment(norm=name).name
    assert set(path) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
    assert len(path) < 100


def test_debug_shows_the_traceback():
    with pytest.raises(ExperimentError):
        normlab("train", "--config", "none.yaml", "--debug")


def test_module_runs_as_the_command_does():
    done = subprocess.run(
        [sys.executable, "-m", "normlab.cli", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "compare" in done.stdout
