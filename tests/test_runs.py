"""A run's folder: F03, F04, F05, F18, F29, F31, rows 57 and 123."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from normlab.lab import runs
from normlab.lab.experiment import Experiment
from normlab.lab.runs import Run, RunError, find

EXPERIMENT = Experiment(norm="group:8", milestones=(0.5, 0.75), seed=3)


@pytest.fixture
def run(tmp_path) -> Run:
    return Run.create(tmp_path / "runs", EXPERIMENT)


def epochs(run: Run, number: int) -> list[dict]:
    for epoch in range(1, number + 1):
        run.log("epoch", epoch=epoch, samples=100 * epoch, train_loss=1 / epoch)
    return run.events()


def test_created_run_has_every_file_and_opens_again(run):
    names = {"experiment.json", "status.json", "metrics.jsonl", "checkpoints"}
    assert {p.name for p in run.path.iterdir()} == names
    assert run.path.name == EXPERIMENT.name
    assert Run.open(run.path) == run
    assert run.status["state"] == "new"
    assert run.events() == []


def test_creating_again_keeps_what_is_there(run):
    run.log("start", num_parameters=7)
    run.set_status("interrupted")
    again = Run.create(run.path.parent, EXPERIMENT)
    assert again == run
    assert again.events() == [{"event": "start", "num_parameters": 7}]
    assert again.status["state"] == "interrupted"


def test_creation_killed_at_any_file_can_be_repeated(tmp_path, monkeypatch):
    for k in (1, 2):
        root = tmp_path / str(k)
        with monkeypatch.context() as patch:
            patch.setattr(runs, "os", KilledOs("link", at=k))
            with pytest.raises(Killed):
                Run.create(root, EXPERIMENT)
        assert Run.create(root, EXPERIMENT).status["state"] == "new"


def test_creation_does_not_replace_the_status_another_process_has_set(tmp_path, monkeypatch):
    """F18"""
    other, touch = [], type(tmp_path).touch

    def creates_it_too(path, *args, **options):
        touch(path, *args, **options)
        if not other:
            other.append(None)
            Run.create(tmp_path, EXPERIMENT).set_status("running")

    monkeypatch.setattr(type(tmp_path), "touch", creates_it_too)
    assert Run.create(tmp_path, EXPERIMENT).status["state"] == "running"


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_run_is_made_where_files_have_one_name_only(tmp_path, monkeypatch, code):
    def refuse(old, new):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(runs.os, "link", refuse)
    run = Run.create(tmp_path, EXPERIMENT)
    assert run.status["state"] == "new"
    assert not list(run.path.glob(".tmp*"))


def test_folder_of_another_experiment_is_refused(run):
    """57"""
    other = Experiment(norm="layer")
    run.path.rename(run.path.parent / other.name)
    with pytest.raises(RunError, match=rf"holds another experiment, {EXPERIMENT.name}; choose ano"):
        Run.create(run.path.parent, other)


def test_folder_of_something_else_is_refused(tmp_path):
    """57"""
    (tmp_path / EXPERIMENT.name).mkdir()
    (tmp_path / EXPERIMENT.name / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"is not a run and holds 'thesis\.tex'"):
        Run.create(tmp_path, EXPERIMENT)


DAMAGED = {
    "not JSON": (b"{", "experiment.json: damaged, not JSON"),
    "not an object": (b"[]", "experiment.json: damaged, expected a JSON object"),
    "not UTF-8": (b'{"a":"\xff"}', "experiment.json: damaged, not JSON"),
    "nested without end": (b'{"a":' * 100_000, "experiment.json: damaged, not JSON"),
    "unknown field": (b'{"nrom": "batch"}', "unknown field 'nrom'; did you mean 'norm'"),
    "wrong value": (b'{"epochs": 0}', "epochs must be at least 1"),
    "NaN": (b'{"warmup": NaN}', "NaN is not a number of JSON"),
}


@pytest.mark.parametrize(("content", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_experiment_is_refused_by_name(run, content, message):
    (run.path / "experiment.json").write_bytes(content)
    with pytest.raises(RunError, match=message):
        Run.open(run.path)


def test_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"is not a run: it has no experiment\.json"):
        Run.open(tmp_path)


def test_events_are_read_in_their_order(run):
    assert epochs(run, 3) == [
        {"event": "epoch", "epoch": e, "samples": 100 * e, "train_loss": 1 / e} for e in (1, 2, 3)
    ]
    assert run.num_events == 3


def test_numbers_that_are_not_finite_become_null(run):
    """123"""
    run.log("epoch", train_loss=float("nan"), validation_loss=[float("inf"), 1.5])
    assert run.events() == [{"event": "epoch", "train_loss": None, "validation_loss": [None, 1.5]}]


def test_half_written_last_line_is_left_out(run):
    """F04"""
    expected = epochs(run, 3)
    file = run.path / "metrics.jsonl"
    whole = file.read_bytes()
    last = len(whole) - len(whole.splitlines(keepends=True)[-1])
    for end in range(last + 1, len(whole)):
        file.write_bytes(whole[:end])
        with pytest.warns(
            UserWarning, match=r"metrics\.jsonl:3: half-written and left out"
        ) as warned:
            assert run.events() == expected[:2]
        assert len(warned) == 1
        assert run.num_events == 2
    run.log("end", reason="finished")
    assert run.events() == [*expected[:2], {"event": "end", "reason": "finished"}]


LINES = {
    "not JSON": (b"{\n", r"metrics\.jsonl:2: damaged, not JSON"),
    "empty": (b"\n", r"metrics\.jsonl:2: damaged, not JSON"),
    "no event": (b'{"epoch": 1}\n', r'metrics\.jsonl:2: damaged, expected "event"'),
    "zeros": (b"\0" * 9 + b"\n", r"metrics\.jsonl:2: damaged"),
    "too large": (b'{"event": "epoch", "train_loss": 1e999}\n', "1e999 is not a number of JSON"),
}


@pytest.mark.parametrize(("line", "message"), LINES.values(), ids=LINES)
def test_damaged_line_is_named(run, line, message):
    epochs(run, 2)
    file = run.path / "metrics.jsonl"
    first, second = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + line + second)
    with pytest.raises(RunError, match=message):
        run.events()


@pytest.mark.parametrize("half", [b"", b'{"event": "ep'], ids=["whole", "half a line"])
def test_events_after_a_checkpoint_are_forgotten(run, half):
    """F03"""
    expected = epochs(run, 5)
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(half)
    for kept in (5, 3, 0):
        run.truncate(kept)
        assert run.events() == expected[:kept]
    with pytest.raises(
        RunError, match="0 events, but the checkpoint was written after 1; the file"
    ):
        run.truncate(1)


class Killed(BaseException):
    """Stands for SIGKILL."""


class KilledOs:
    """The os module in which the k-th call of one function never returns."""

    def __init__(self, name: str, at: int = 1) -> None:
        self.name, self.at = name, at

    def __getattr__(self, name):
        if name == self.name:
            self.at -= 1
            if self.at == 0:
                raise Killed
        return getattr(os, name)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_old_file_is_whole_when_killed_while_replacing_it(run, monkeypatch, call):
    """F31"""
    expected = epochs(run, 3)
    monkeypatch.setattr(runs, "os", KilledOs(call))
    with pytest.raises(Killed):
        run.truncate(1)
    monkeypatch.setattr(runs, "os", KilledOs(call))
    with pytest.raises(Killed):
        run.set_status("finished")
    monkeypatch.undo()
    assert run.events() == expected
    assert run.status["state"] == "new"
    with run.lock():
        assert not list(run.path.glob(".tmp*"))


def test_full_disk_is_said_and_leaves_whole_lines(run):
    """F05"""
    expected = epochs(run, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (run.path / "metrics.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
    try:
        with pytest.raises(
            RunError, match=r"metrics.jsonl: an event of \d+ bytes was not written: F"
        ):
            run.log("end", reason="finished")
        with pytest.raises(
            RunError, match=r"status.json: \d+ bytes were not written: File too large"
        ):
            run.set_status("failed", reason="x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert run.events() == expected
    assert run.status["state"] == "new"
    assert not list(run.path.glob(".tmp*"))


def test_write_error_is_said(run, monkeypatch):
    """F06"""

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(runs.os, "fsync", broken)
    with pytest.raises(RunError, match=r"metrics\.jsonl: .* not written: Input/output error"):
        run.log("start")
    with pytest.raises(
        RunError, match=r"status\.json: .* Input/output error; the old file is inta"
    ):
        run.set_status("running")
    assert run.events() == []


def test_vanished_folder_is_said(run):
    """F06"""
    run.path.rename(run.path.parent / "moved")
    with pytest.raises(RunError, match=r"metrics\.jsonl: .* not written: No such file"):
        run.log("start")


def test_status_is_replaced_whole(run):
    run.set_status("running", epoch=1)
    run.set_status("diverged", step=7, loss=float("nan"))
    status = run.status
    assert (status["state"], status["step"], status["loss"]) == ("diverged", 7, None)
    assert "epoch" not in status


def test_unknown_state_is_refused(run):
    with pytest.raises(RunError, match="state 'done' is not possible; there are new, running"):
        run.set_status("done")
    (run.path / "status.json").write_text('{"state": "done"}')
    with pytest.raises(RunError, match=r"status\.json: state 'done', expected one of new, running"):
        _ = run.status


def test_damaged_runs_are_listed_and_the_others_found(tmp_path):
    """F29"""
    made = [Run.create(tmp_path, Experiment(seed=seed)) for seed in range(10)]
    writing, damaged, torn = sorted(made, key=lambda run: run.path)[:3]
    with (writing.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"event": "epo')
    (damaged.path / "status.json").unlink()
    (torn.path / "metrics.jsonl").write_bytes(b"\0\n")
    (tmp_path / "report").mkdir()
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "status.json").touch()
    (tmp_path / "notes.txt").touch()
    found, listed = find(tmp_path)
    assert found == sorted(set(made) - {damaged, torn}, key=lambda run: run.path)
    assert [path for path, _ in listed] == [damaged.path, torn.path, tmp_path / "unfinished"]
    reasons = ["status.json: cannot be read", "metrics.jsonl:1: damaged", "has no experiment.json"]
    assert all(reason in text for reason, (_, text) in zip(reasons, listed, strict=True))


def test_missing_folder_of_runs_is_said(tmp_path):
    with pytest.raises(RunError, match="gone: cannot be read: No such file"):
        find(tmp_path / "gone")


def test_torch_is_not_imported():
    code = "import sys, normlab.lab.runs; print('torch' in sys.modules)"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert printed.stdout == "False\n"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
PARTS = st.sampled_from([b"\n", b'{"event": "epoch"}\n', b"{", b'"', b"1e999", b"\xff"])
METRICS = st.lists(PARTS | JSON.map(lambda v: json.dumps(v).encode())).map(b"".join)
SETTINGS = settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@SETTINGS
@given(data=st.binary(max_size=100) | METRICS)
@pytest.mark.filterwarnings("ignore:.*half-written")
def test_any_metrics_file_is_read_or_refused_in_words(run, data):
    """S21"""
    (run.path / "metrics.jsonl").write_bytes(data)
    try:
        num_read = len(run.events())
    except RunError as error:
        message = str(error)
    else:
        message = f"{run.path / 'metrics.jsonl'}:"
        assert num_read == run.num_events
    assert message.startswith(f"{run.path / 'metrics.jsonl'}:")


@SETTINGS
@given(value=JSON)
def test_any_event_is_written_as_one_strict_line(run, value):
    (run.path / "metrics.jsonl").write_bytes(b"")
    run.log("probe", value=value)
    [event] = run.events()
    assert event["event"] == "probe"


def test_lock_passes_over_a_file_whose_writer_is_done_with_it(tmp_path, monkeypatch):
    """F18: another sweep makes the same run, and takes its own file away first."""
    run = Run.create(tmp_path, Experiment())
    gone = run.path / ".tmp-0123456789abcdef"
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter([gone]))
    with run.lock():
        assert (run.path / "lock").read_bytes()
