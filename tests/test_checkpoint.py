"""Checkpoints: F02, F05, F06, F07, S02, S04, S18 and the fuzzing of manifests."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import killed_saves
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from normlab.lab import checkpoint
from normlab.lab.checkpoint import CheckpointError, load, save, verify

FILES = ("tensors.safetensors", "state.json", "manifest.json")
CALLS = {"mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir"}


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the code under test may catch it."""


class FaultyOs:
    """The os module, failing at the k-th call that touches the disk; once killed, ever after."""

    def __init__(self, fault: BaseException, at: int = 10**9) -> None:
        self.fault, self.at, self.calls = fault, at, 0

    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*args, **kwargs):
            self.calls += 1
            fails = self.calls == self.at
            if fails and name == "write":
                real(args[0], args[1][: len(args[1]) // 2])
            if fails or (self.calls > self.at and isinstance(self.fault, Killed)):
                raise self.fault
            return real(*args, **kwargs)

        return call


def tensors_of(step: int) -> dict[str, torch.Tensor]:
    return {"model.weight": torch.full((3, 4), float(step)), "rng": torch.get_rng_state()}


def saved(folder: Path, *steps: int, keep: int = 2) -> Path:
    for step in steps:
        path = save(folder, step, tensors_of(step), {"step": step}, keep=keep)
    return path


def assert_holds(folder: Path, *possible: int) -> None:
    tensors, state, _ = load(folder)
    assert state["step"] in possible
    assert torch.equal(tensors["model.weight"], torch.full((3, 4), float(state["step"])))


def test_everything_saved_is_loaded(tmp_path):
    state = {"epoch": 3, "best": 8.25, "betas": [0.9, 0.999], "name": "größer", "none": None}
    tensors = tensors_of(7)
    path = save(tmp_path / "checkpoints", 7, tensors, state)
    loaded, loaded_state, loaded_path = load(tmp_path / "checkpoints")
    assert (loaded_state, loaded_path, path.name) == (state, path, "000000000007")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


BASE = torch.arange(24.0).reshape(2, 3, 4)


@pytest.mark.parametrize(
    "tensors",
    [
        pytest.param({"a": BASE, "b": BASE}, id="tied"),
        pytest.param({"a": BASE[0], "b": BASE[1]}, id="parts of one storage"),
        pytest.param({"a": BASE, "b": BASE[:, 1]}, id="overlapping"),
        pytest.param({"a": BASE.transpose(0, 2)}, id="not contiguous"),
        pytest.param({"a": torch.ones(1).expand(5)}, id="expanded"),
        pytest.param(
            {"a": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)}, id="channels last"
        ),
        pytest.param({"a": torch.tensor(3), "b": torch.zeros(0), "c": torch.zeros(0)}, id="small"),
        pytest.param(
            {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.ones(2) > 0}, id="types"
        ),
        pytest.param({"a": nn.Parameter(BASE.clone())}, id="a parameter"),
        pytest.param({}, id="no tensors"),
    ],
)
def test_any_dense_tensors_survive(tmp_path, tensors):
    save(tmp_path, 1, tensors, {})
    loaded = load(tmp_path)[0]
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


@pytest.mark.parametrize(
    ("tensors", "state", "message"),
    [
        pytest.param({"a": torch.ones(2).to_sparse()}, {}, "a: only dense tensors", id="sparse"),
        pytest.param({"a": torch.ones(2, device="meta")}, {}, "a: only dense tensors", id="meta"),
        pytest.param({}, {"best": float("nan")}, "state is not JSON", id="NaN in the state"),
        pytest.param({}, {"w": torch.ones(1)}, "keep tensors in `tensors`", id="tensor in state"),
        pytest.param(
            {}, {"state": [{0: 1}]}, r"state\['state'\]\[0\] has the key 0", id="keys of numbers"
        ),
    ],
)
def test_what_would_not_come_back_is_refused(tmp_path, tensors, state, message):
    with pytest.raises(CheckpointError, match=message):
        save(tmp_path, 1, tensors, state)
    assert not list(tmp_path.iterdir())


def test_only_the_newest_are_kept(tmp_path):
    saved(tmp_path, 1, 2, 10, 9, keep=3)
    assert [path.name for path, _ in verify(tmp_path)] == [f"{s:012d}" for s in (10, 9, 2, 1)]
    saved(tmp_path, 11, keep=3)
    assert [path.name for path, _ in verify(tmp_path)] == [f"{s:012d}" for s in (11, 10, 9)]


def test_a_step_saved_again_replaces_nothing_before_it_is_safe(tmp_path):
    first = saved(tmp_path, 7)
    assert saved(tmp_path, 7) == first
    for value in (1, 2, 3):
        again = save(tmp_path, 7, {}, {"value": value})
        assert load(tmp_path)[1:] == ({"value": value}, again)
    assert len(verify(tmp_path)) == 2


SCENARIOS = {"next step": (2, 2), "the same step again": (1, 2), "only one kept": (2, 1)}


@pytest.mark.parametrize(("step", "keep"), SCENARIOS.values(), ids=SCENARIOS)
def test_killed_at_any_call_leaves_a_whole_checkpoint(tmp_path, monkeypatch, step, keep):
    """F02"""

    def save_with(disk: FaultyOs, folder: Path) -> None:
        saved(folder, 0, 1, keep=keep)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "os", disk)
            save(folder, step, tensors_of(2), {"step": 2}, keep=keep)

    counter = FaultyOs(Killed())
    save_with(counter, tmp_path / "counted")
    assert counter.calls > 15
    for k in range(1, counter.calls + 1):
        folder = tmp_path / str(k)
        with pytest.raises(Killed):
            save_with(FaultyOs(Killed(), at=k), folder)
        assert all(problem is None for _, problem in verify(folder))
        assert_holds(folder, 1, 2)
        saved(folder, 3, keep=keep)
        assert_holds(folder, 3)
        assert len(list(folder.iterdir())) == keep, f"leftovers after a kill at call {k}"


def test_process_killed_at_any_moment_leaves_the_newest_checkpoint(tmp_path):
    """F02; 200 kills are in test_faults_slow.py."""
    found = killed_saves.after_kills(tmp_path / "checkpoints", num=20, seed=1)
    assert found.pop("kills that left something") > 0
    assert found == {"newest": 20, "before it": 0, "unreadable": 0, "left at last": 0}


FAULTS = {
    "F05: disk full": (errno.ENOSPC, "No space left on device, free space"),
    "F06: not writable": (errno.EACCES, "Permission denied, make the folder writable"),
    "F06: disk broken": (errno.EIO, "Input/output error"),
}


@pytest.mark.parametrize(("code", "message"), FAULTS.values(), ids=FAULTS)
def test_failing_disk_is_said_and_older_checkpoints_stay(tmp_path, monkeypatch, code, message):
    saved(tmp_path, 1)
    for k in (1, 2, 3, 4, 6, 9, 11):  # mkdir, open, write, fsync, later files, rename
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "os", FaultyOs(OSError(code, os.strerror(code)), at=k))
            with pytest.raises(CheckpointError, match=rf"step 2 .* needs \d+ bytes: {message}"):
                saved(tmp_path, 2)
        assert_holds(tmp_path, 1)
        assert len(list(tmp_path.iterdir())) == 1


def test_file_size_limit_is_said_and_older_checkpoints_stay(tmp_path):
    """F05"""
    saved(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"needs \d+ bytes: File too large, raise the"):
            save(tmp_path, 2, {"large": torch.zeros(50_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_holds(tmp_path, 1)


def test_vanished_run_is_not_made_anew(tmp_path):
    """F06"""
    with pytest.raises(CheckpointError, match="the folder of the run is gone"):
        saved(tmp_path / "gone" / "checkpoints", 1)
    assert not (tmp_path / "gone").exists()


def cut(fraction: float):
    def corrupt(file: Path) -> None:
        data = file.read_bytes()
        file.write_bytes(data[: min(int(len(data) * fraction), len(data) - 1)])

    return corrupt


def flip(fraction: float):
    def corrupt(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[int((len(data) - 1) * fraction)] ^= 1 << int(fraction * 7)
        file.write_bytes(data)

    return corrupt


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


CORRUPTIONS = {
    **{f"cut at {f:.1%}": cut(f) for f in (0, 0.1, 0.5, 0.9, 0.999)},
    **{f"bit flipped at {f:.1%}": flip(f) for f in (0, 0.03, 0.2, 0.4, 0.6, 0.8, 1)},
    "missing": Path.unlink,
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\n"),
    "a folder": replace_by_folder,
    "an extra file beside": lambda file: file.with_suffix(".extra").touch(),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("corrupt", CORRUPTIONS.values(), ids=CORRUPTIONS)
def test_damage_is_named_and_the_previous_checkpoint_used(tmp_path, name, corrupt):
    """F07, 110"""
    newest = saved(tmp_path, 1, 2)
    corrupt(newest / name)
    (found, problem), (_, none) = verify(tmp_path)
    assert (found, none) == (newest, None)
    assert problem.startswith(f"{newest}{os.sep}")
    with pytest.warns(
        UserWarning, match=rf"{newest.name}{os.sep}.* Going back to .*0001$"
    ) as warned:
        assert_holds(tmp_path, 1)
    assert len(warned) == 1


def test_manifest_of_another_checkpoint_is_refused(tmp_path):
    newest = saved(tmp_path, 1, 2)
    shutil.copy(tmp_path / "000000000001" / "manifest.json", newest)
    assert "tensors.safetensors: damaged" in dict(verify(tmp_path))[newest]


def test_newer_format_says_who_reads_it(tmp_path):
    """114"""
    path = saved(tmp_path, 1)
    fields = json.loads((path / "manifest.json").read_text())
    del fields["sha256"]
    newer = {**fields, "format": 2, "writer": "normlab 9.1"}
    (path / "manifest.json").write_bytes(checkpoint._sealed(newer))
    with pytest.raises(
        CheckpointError, match=r"format 2, written by normlab 9.1; this version rea"
    ):
        load(tmp_path)


def test_what_a_kill_left_in_an_empty_folder_is_no_checkpoint(tmp_path):
    assert checkpoint.is_empty(tmp_path / "never made")
    (tmp_path / ".tmp-7-999999999").mkdir()
    assert checkpoint.is_empty(tmp_path)
    (saved(tmp_path, 1) / "state.json").unlink()
    assert not checkpoint.is_empty(tmp_path), "a damaged one is said, not passed over"


def test_no_usable_checkpoint_lists_why(tmp_path):
    with pytest.raises(CheckpointError, match="no usable checkpoint: there is none"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="gone: cannot be read"):
        load(tmp_path / "gone")
    for path in (saved(tmp_path, 1), saved(tmp_path, 2)):
        (path / "state.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"0002.state.json: cannot .*0001.state.json: cannot "
    ):
        load(tmp_path)


def test_leftovers_of_dead_processes_are_removed(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    mine, dead, alive = (tmp_path / f".tmp-7-{pid}" for pid in (os.getpid(), child.pid, 1))
    for folder in (mine, dead, alive):
        folder.mkdir()
        (folder / "state.json").write_text("{")
    saved(tmp_path, 8)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".tmp-7-1", "000000000008"]


def test_only_own_names_are_deleted_and_no_link_is_followed(tmp_path):
    """S18"""
    folder, outside = tmp_path / "checkpoints", saved(tmp_path / "outside", 1)
    kept = saved(folder, 2)
    (kept / "notes.txt").write_text("mine")
    (folder / "000000000001").symlink_to(outside)
    (folder / ".tmp-1-999999999").symlink_to(outside)
    for name in ("best", "0003", ".tmp-mine"):
        (folder / name).mkdir()
    before = sorted(p.name for p in folder.iterdir())
    saved(folder, 4, 5, keep=1)
    assert sorted(p.name for p in folder.iterdir()) == sorted([*before, "000000000005"])
    assert sorted(p.name for p in outside.iterdir()) == sorted(FILES)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["files", "size", "sha256", *FILES]), inner)
    ),
    max_leaves=8,
)
MANIFESTS = st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode())
SEALED = st.fixed_dictionaries({"format": st.just(1) | JSON, "files": JSON}).map(checkpoint._sealed)


@settings(
    max_examples=200,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=MANIFESTS | SEALED)
def test_any_manifest_is_refused_in_words(tmp_path, data):
    """S21"""
    path = tmp_path / "000000000001"
    if not path.exists():
        saved(tmp_path, 1)
    (path / "manifest.json").write_bytes(data)
    [(_, problem)] = verify(tmp_path)
    assert problem.startswith(str(path))


def test_deeply_nested_manifest_is_refused_in_words(tmp_path):
    path = saved(tmp_path, 1)
    (path / "manifest.json").write_bytes(b'{"a":' * 100_000)
    assert "not JSON" in verify(tmp_path)[0][1]
