"""Looking after runs: lists, conditions, comparisons, and removals of nothing else: S18."""

import json
import os

import pytest
from fake_runs import folder_of_runs
from files import snapshot

from normlab import cli
from normlab.lab import manage
from normlab.lab.experiment import Experiment
from normlab.lab.manage import ManageError, facts, select
from normlab.lab.runs import Run, RunInUse, find


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    root = folder_of_runs(tmp_path_factory.mktemp("runs"), num_seeds=2)
    Run.create(root, Experiment(norm="layer", seed=7)).set_status("failed", cause="KeyError: 'x'")
    return root


@pytest.fixture
def rows(shared):
    return [facts(run) for run in find(shared)[0]]


@pytest.fixture
def root(tmp_path):
    return folder_of_runs(tmp_path / "runs", num_seeds=1, num_epochs=2)


def normlab(*arguments):
    return cli.main([str(a) for a in arguments])


def test_facts_are_settings_and_results(rows):
    row = next(r for r in rows if r["norm"] == "group:1" and r["seed"] == 1)
    assert (row["state"], row["epoch"], row["seconds"]) == ("finished", 8, 12.0)
    assert row["error"] == pytest.approx(20.0 + 1 / 8 + 60 / 64)
    assert 0 <= row["age"] < 3600
    assert row["batch_size"] == 32


CONDITIONS = {
    "text": (["norm=layer"], 3),
    "not": (["norm!=batch"], 11),
    "glob": (["norm=group*"], 4),
    "number": (["norm_batch_size=4"], 2),
    "hyphens": (["norm-batch-size=4"], 2),
    "none": (["norm_batch_size=none"], 11),
    "state": (["state=failed"], 1),
    "less": (["seed<1"], 10),
    "at least": (["seed>=1"], 11),
    "nothing is not less": (["error<1e9"], 20),
    "both": (["norm=layer", "state=finished"], 2),
    "bool": (["zero_init=true"], 0),
    "cause": (["cause=KeyError*"], 1),
    "no match": (["norm=batch_group"], 0),
}


@pytest.mark.parametrize(("conditions", "number"), CONDITIONS.values(), ids=CONDITIONS)
def test_conditions_choose_runs(rows, conditions, number):
    assert len(select(rows, conditions)) == number


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("norm", "a condition is like norm=group, seed!=0 or error<10, not 'norm'"),
        ("nrom=batch", "runs have no 'nrom'; did you mean 'norm'"),
        ("error<few", "'error<few': < takes a number, got 'few'"),
        ("", "a condition is like"),
    ],
)
def test_condition_that_makes_no_sense_is_explained(rows, condition, message):
    with pytest.raises(ManageError, match=message):
        select(rows, [condition])


def test_runs_without_the_number_come_last(rows):
    for sort in ("error", "-error"):
        errors = [row["error"] for row in select(rows, [], sort)]
        assert errors[-1] is None
        assert errors[:-1] == sorted(errors[:-1], reverse=sort == "-error")
    with pytest.raises(ManageError, match="runs have no 'eror'; did you mean 'error'"):
        select(rows, [], "eror")


def test_command_lists_runs(shared, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    assert normlab("runs", shared, "--where", "norm=layer", "--sort", "error") == 0
    out = capsys.readouterr().out
    assert "3 runs" in out
    assert "8/8" in out
    assert "KeyError: 'x'" in out
    assert normlab("runs", shared, "--where", "state=failed", "--json") == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["norm"], told["cause"]) == ("layer", "KeyError: 'x'")


def test_damaged_runs_are_listed_apart_f29(root, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    (next(root.iterdir()) / "status.json").write_text("{")
    assert normlab("runs", root) == 0
    out = capsys.readouterr().out
    assert "9 runs" in out
    assert "damaged, not JSON" in out


def test_two_runs_are_compared(shared, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    one, other = (Experiment(norm=norm, seed=1, epochs=8).name for norm in ("group", "layer"))
    assert normlab("runs", "--compare", shared / one, shared / other) == 0
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines() if line.strip().startswith("norm ")] == [
        ["norm", "group", "layer"]
    ]
    assert "batch_size" not in out
    assert normlab("runs", "--compare", shared / one, shared / other, "--json") == 0
    assert json.loads(capsys.readouterr().out)["differences"] == {"norm": ["group", "layer"]}


def test_escape_sequences_are_shown_escaped_s12(root, capsys):
    run = find(root)[0][0]
    run.set_status("failed", cause="\x1b[31mred\x07")
    assert normlab("runs", root) == 0
    assert "\x1b" not in capsys.readouterr().out


MISTAKES = {
    "59: condition": (["--where", "nrom=batch"], 2, "did you mean 'norm'"),
    "compare one": (["--compare"], 2, "--compare takes the folders of two runs, got 1"),
    "yes to nothing": (["--yes"], 2, "--yes is the answer to the question of --remove"),
    "nobody to ask": (["--remove"], 2, "there is no terminal to ask on; add --yes"),
}


@pytest.mark.parametrize(("arguments", "code", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_changes_nothing_and_is_explained(root, capsys, arguments, code, message):
    before = snapshot(root)
    assert normlab("runs", root, *arguments) == code
    printed = " ".join(capsys.readouterr().err.split())
    assert message in printed
    assert "Traceback" not in printed
    assert snapshot(root) == before


def test_missing_folder_is_said_50(tmp_path, capsys):
    assert normlab("runs", tmp_path / "none") == 1
    assert "cannot be read: No such file" in capsys.readouterr().err


def test_chosen_runs_are_removed_and_no_other(root, capsys):
    (root / "report.html").write_text("kept")
    assert normlab("runs", root, "--where", "norm=batch", "--remove", "--yes") == 0
    assert "removed 5 of 5 runs" in capsys.readouterr().err
    left = find(root)[0]
    assert len(left) == 5
    assert all(run.experiment.norm != "batch" for run in left)
    assert {p.name for p in root.iterdir()} == {"report.html", *(r.path.name for r in left)}


def test_trained_run_is_removed_whole(tmp_path):
    """With everything training writes: checkpoints, events, locks."""
    arguments = ["--data", "digits", "--num-train", "64", "--num-validation", "32",
                 "--batch-size", "16", "--epochs", "1", "--device", "cpu"]  # fmt: skip
    assert normlab("train", *arguments, "--out", tmp_path) == 0
    (run,) = find(tmp_path)[0]
    manage.remove(run)
    assert list(tmp_path.iterdir()) == []


def test_run_in_use_is_not_removed_s18(root):
    run = find(root)[0][0]
    with run.lock(), pytest.raises(RunInUse, match="is in use by process"):
        manage.remove(run)
    with run.claim(), pytest.raises(RunInUse, match="is in use"):
        manage.remove(Run.open(run.path))
    assert Run.open(run.path).status["state"] == "finished"


def test_run_is_not_removed_through_a_link_s18(root, tmp_path):
    run = find(root)[0][0]
    elsewhere = tmp_path / "elsewhere"
    os.rename(run.path, elsewhere)
    run.path.symlink_to(elsewhere)
    before = snapshot(elsewhere)
    with pytest.raises(ManageError, match="is a link; delete it by hand"):
        manage.remove(run)
    assert snapshot(elsewhere) == before


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/best"])
def test_link_inside_a_run_keeps_it_s18(root, tmp_path, place):
    run = find(root)[0][0]
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "data").write_text("x")
    (run.path / place / "000000000007").symlink_to(tmp_path / "precious")
    with pytest.raises(ManageError, match="000000000007 is a link; nothing of the run was removed"):
        manage.remove(run)
    assert (tmp_path / "precious" / "data").exists()
    assert (run.path / "experiment.json").exists()


@pytest.mark.parametrize("name", ["thesis.tex", "checkpoints/mine.pt", "checkpoints/best/x/y"])
def test_run_with_something_of_its_owner_is_kept_s18(root, capsys, name):
    run = find(root)[0][0]
    (run.path / name).parent.mkdir(parents=True, exist_ok=True)
    (run.path / name).write_text("x")
    before = snapshot(run.path)
    assert normlab("runs", root, "--remove", "--yes") == 1
    err = capsys.readouterr().err
    assert "removed 9 of 10 runs" in err
    assert "is not of normlab; nothing of the run was removed" in err
    assert snapshot(run.path).items() >= before.items()


def test_removal_that_was_killed_is_completed_by_the_next(root, monkeypatch):
    first, second, *_ = find(root)[0]

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(manage.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            manage.remove(first)
    assert len(find(root)[0]) == 9
    manage.remove(second)
    assert len(list(root.iterdir())) == 8


def test_question_is_asked_on_a_terminal(root, monkeypatch, capsys):
    from rich.console import Console

    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr(Console, "input", lambda self, prompt: "n")
    assert normlab("runs", root, "--remove") == 1
    assert "nothing was removed" in capsys.readouterr().err
    assert len(find(root)[0]) == 10
    monkeypatch.setattr(Console, "input", lambda self, prompt: "y")
    assert normlab("runs", root, "--remove") == 0
    assert find(root)[0] == []
