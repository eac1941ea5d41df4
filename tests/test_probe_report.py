"""What is read of probes, and the section of the report that shows them."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from normlab.lab.analysis import analyse
from normlab.lab.analysis_probes import Probe, medians
from normlab.lab.analysis_probes import probes as read
from normlab.lab.experiment import Experiment
from normlab.lab.report.probes import section
from normlab.lab.report.sections import Section
from normlab.lab.runs import Run


def written(root: Path, *lines: dict[str, Any]) -> Run:
    run = Run.create(root, Experiment())
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


EVENT = {
    "event": "probe", "epoch": 2, "step": 64, "samples": 2048, "layer": "bn1", "place": "input",
    "percentiles": {"1": -2.0, "20": -1.0, "80": 1.0, "99": 2.5}, "mean": 0.5, "noise": 0.25,
}  # fmt: skip
PROBE = Probe(
    2, 64, 2048, "bn1", "input", {1: -2.0, 20: -1.0, 80: 1.0, 99: 2.5}, mean=0.5, noise=0.25
)


def test_probes_are_read_as_they_were_written(tmp_path):
    run = written(tmp_path, {"event": "start"}, EVENT, {"event": "epoch"})
    assert read(run) == [PROBE]
    assert PROBE.fan == (-2.0, -1.0, 1.0, 2.5)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"mean": None}, replace(PROBE, mean=None), id="null"),
        pytest.param({"mean": 10**400}, replace(PROBE, mean=None), id="too large"),
        pytest.param({"step": -1}, None, id="a negative step"),
        pytest.param({"mean": "0.5"}, replace(PROBE, mean=None), id="text"),
        pytest.param({"mean": True}, replace(PROBE, mean=None), id="a boolean"),
        pytest.param(
            {"percentiles": [1]}, replace(PROBE, percentiles=dict.fromkeys((1, 20, 80, 99))),
            id="percentiles of another kind",
        ),
        pytest.param({"unknown": 7}, PROBE, id="a field of the future"),
        pytest.param({"layer": None}, None, id="without a layer"),
        pytest.param({"step": "x"}, None, id="without a step"),
    ],
)  # fmt: skip
def test_damaged_probes_lose_only_what_is_damaged(tmp_path, change, expected):
    assert read(written(tmp_path, {**EVENT, **change})) == ([] if expected is None else [expected])


def test_half_written_probe_is_left_out_in_silence(tmp_path):
    run = written(tmp_path, EVENT)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "probe", "layer"')
    assert read(run) == [PROBE]


def test_medians_are_over_the_seeds_that_have_the_number():
    def seed(step: int, mean: float | None, low: float | None) -> Probe:
        return replace(PROBE, step=step, mean=mean, percentiles={**PROBE.percentiles, 1: low})

    seeds = [
        [seed(0, 1.0, -1.0), seed(64, 1.0, -1.0)],
        [seed(0, 5.0, -9.0), seed(64, None, None)],
        [seed(0, 2.0, -2.0)],  # diverged
    ]
    found = medians(seeds)
    assert [(p.step, p.mean, p.percentiles[1]) for p in found] == [(0, 2, -2), (64, 1, -1)]
    assert found[0].gap is None


def test_probes_are_read_without_torch():
    code = "import sys, normlab.lab.report.probes; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy"} & set(done.stdout.split())


# What is shown


def written_sweep(root: Path) -> list[Run]:
    """Runs of two norms and three seeds; layer bn1 is at ± seed with batch, a tenth with none."""
    runs = []
    for norm, size in (("batch", 1.0), ("none", 0.1)):
        for seed in (1, 2, 9):
            run = Run.create(root, Experiment(norm=norm, seed=seed, probe="bn1,features"))
            run.set_status("finished")
            for layer, place in (("bn1", "input"), ("features", "features")):
                for step in (0, 64):
                    high = seed * size + step
                    percentiles = {"1": -high, "20": -high / 2, "80": high / 2, "99": high}
                    fields = {"layer": layer, "place": place, "percentiles": percentiles}
                    where = {"epoch": 1, "step": step, "samples": 32 * step}
                    run.log_all("probe", [{**where, **fields, "mean": 0.0}])
            runs.append(run)
    return runs


def drawn(runs: list[Run]) -> Section:
    found = section(analyse(runs), runs)
    assert found is not None
    return found


def test_fans_are_medians_of_the_seeds_norm_beside_norm(tmp_path):
    found = drawn(written_sweep(tmp_path))
    assert [f.title for f in found.figures] == ["bn1, before the norm", "Pooled features"]
    assert found.figures[0].table.rows == (
        ("batch", "0", "−2", "−1", "1", "2"),
        ("batch", "2,048", "−66", "−33", "33", "66"),
        ("none", "0", "−0.2", "−0.1", "0.1", "0.2"),
        ("none", "2,048", "−64.2", "−32.1", "32.1", "64.2"),
    )
    assert found.sentences[0] == (
        "bn1, before the norm: in the end, 98 % of the values lie between −66 and 66 with batch; "
        "−64.2 and 64.2 with none."
    )


def test_fans_of_other_sizes_have_axes_of_their_own(tmp_path):
    runs = written_sweep(tmp_path)
    assert "share one axis" in drawn(runs).figures[0].note
    for run in runs:
        lines = (run.path / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run.path / "metrics.jsonl").write_text(
            "".join(line for line in lines if '"step": 0' in line)
        )
    assert "an axis of its own" in drawn(runs).figures[0].note


def test_drawings_are_well_formed_and_as_wide_as_said(tmp_path):
    for figure in drawn(written_sweep(tmp_path)).figures:
        for svg, width in ((figure.svg, 720), (figure.narrow, 360)):
            root = ElementTree.fromstring(svg)
            assert root.get("viewBox", "").split()[2] == str(width)
            said = [t.text for t in root.iter("title")]
            assert "batch, after 2,048 images. 1 %: −66, 20 %: −33, 80 %: 33, 99 %: 66" in said


@pytest.mark.parametrize(
    "size", [0.0, 1e-30, 1e30, 1e299], ids=["all equal", "tiny", "huge", "near the largest"]
)
def test_fans_of_any_size_are_drawn(tmp_path, size):
    run = Run.create(tmp_path, Experiment(probe="bn1"))
    percentiles = {"1": -size, "20": 0.0, "80": 0.0, "99": size}
    run.log_all("probe", [{**EVENT, "percentiles": percentiles, "step": s} for s in (0, 64)])
    svg = drawn([run]).figures[0].svg
    assert not re.search("nan|inf", svg, re.IGNORECASE)
    texts = ElementTree.fromstring(svg).iter("text")
    ticks = [t.text for t in texts if t.get("class") == "tick end"]
    assert len(ticks) == len(set(ticks)) > 2


def test_runs_without_percentiles_have_a_table_only(tmp_path):
    run = Run.create(tmp_path, Experiment(probe="bn1"))
    run.log_all("probe", [{**EVENT, "percentiles": None}])
    found = drawn([run])
    assert not found.figures
    assert found.tables[0].rows[0][:3] == ("bn1, before the norm", "group", "—")


def test_runs_without_probes_have_no_section(tmp_path):
    run = Run.create(tmp_path, Experiment())
    assert section(analyse([run]), [run]) is None
    run = Run.create(tmp_path, Experiment(probe="bn1"))
    assert section(analyse([run]), [run]) is None


def test_damaged_run_leaves_the_others(tmp_path):
    runs = written_sweep(tmp_path)
    (runs[0].path / "metrics.jsonl").write_text("{\n")
    (runs[1].path / "metrics.jsonl").unlink()
    assert drawn(runs).figures[0].table.rows[0] == ("batch", "0", "−9", "−4.5", "4.5", "9")


def test_many_layers_are_drawn_in_part_and_listed_in_full(tmp_path):
    run = Run.create(tmp_path, Experiment(probe="*"))
    run.log_all("probe", [{**EVENT, "layer": f"bn{i}"} for i in range(40)])
    found = drawn([run])
    assert len(found.figures) == 8
    assert [found.figures[i].title for i in (0, -1)] == [f"bn{i}, before the norm" for i in (0, 39)]
    assert len(found.folded[0].rows) == 40


def test_hostile_names_stay_text(tmp_path):
    run = Run.create(tmp_path, Experiment(probe="*"))
    name = "</title><script>alert(1)</script>\u202e"
    run.log_all("probe", [{**EVENT, "layer": name}])
    figure = drawn([run]).figures[0]
    tags = {e.tag for e in ElementTree.fromstring(figure.svg).iter()}
    assert not {"script"} & tags
    assert "\u202e" not in figure.svg
