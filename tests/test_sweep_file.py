"""Sweeps in Python files and in those that jobs of a cluster read."""

import pytest

from normlab.lab import sweep_file
from normlab.lab.experiment import Experiment, ExperimentError, Sweep
from normlab.lab.sweep_file import SweepFileError

SOURCE = """
from normlab import Experiment, Sweep
SWEEP = Sweep.grid("few", Experiment(), seed=[0, 1])
FULL = Sweep.grid("many", Experiment(), seed=range(5))
"""


def test_scale_chooses_the_variable(tmp_path):
    file = tmp_path / "which.py"
    file.write_text(SOURCE)
    assert sweep_file.load(file).title == "few"
    assert len(sweep_file.load(file, "full").experiments) == 5


def test_saved_sweep_is_read_back(tmp_path):
    sweep = Sweep.grid(
        "Which <b>?", Experiment(milestones=(0.5, 0.7)), note="ä", norm=["group:8", "batch"]
    )
    sweep_file.save(sweep, tmp_path / "sweep.json")
    assert sweep_file.load(tmp_path / "sweep.json") == sweep


PYTHON = {
    "59: no SWEEP": ("", "small", r"mine\.py has no SWEEP = Sweep\(\.\.\.\); see experiments/"),
    "59: no FULL": (
        SOURCE.replace("FULL", "REST"), "full", r"no FULL = Sweep\(\.\.\.\); it has --scale small",
    ),
    "59: another thing": ("SWEEP = 3", "small", "has no SWEEP"),
    "syntax": ("SWEEP = (", "small", r"mine\.py: SyntaxError: '\(' was never closed"),
    "its own error": ("1 / 0", "small", r"mine\.py: ZeroDivisionError: division by zero"),
    "bad field": (
        "from normlab import Experiment; Experiment(epochs=0)", "small",
        r"mine\.py: ExperimentError: epochs must be at least 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("source", "scale", "message"), PYTHON.values(), ids=PYTHON)
def test_python_file_without_the_sweep_is_explained(tmp_path, source, scale, message):
    file = tmp_path / "mine.py"
    file.write_text(source)
    with pytest.raises(SweepFileError, match=message):
        sweep_file.load(file, scale)


JSON = {
    "50: missing": (None, r"sweep\.json: cannot be read: No such file"),
    "46: empty": (b"", r"sweep\.json: not a sweep"),
    "47: not UTF-8": (b"\xff\xfe", r"sweep\.json: not a sweep"),
    "49: depth": (b"[" * 100_000, r"sweep\.json: not a sweep"),
    "not an object": (b"[]", r"sweep\.json: not a sweep"),
    "no title": (b'{"experiments": []}', r"expected title, note and experiments \('title'\)"),
    "not a list": (b'{"title": "", "note": "", "experiments": 3}', r"not a sweep"),
    "not fields": (b'{"title": "", "note": "", "experiments": [3]}', r"not a sweep"),
}


@pytest.mark.parametrize(("content", "message"), JSON.values(), ids=JSON)
def test_json_that_is_no_sweep_is_explained(tmp_path, content, message):
    file = tmp_path / "sweep.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SweepFileError, match=message):
        sweep_file.load(file)


def test_unknown_field_in_json_is_named_42(tmp_path):
    file = tmp_path / "sweep.json"
    file.write_text('{"title": "", "note": "", "experiments": [{"nrom": "batch"}]}')
    with pytest.raises(ExperimentError, match="unknown field 'nrom'; did you mean 'norm'"):
        sweep_file.load(file)
