"""What the report says of networks judged under shifted images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_runs import FakeRun

from normlab.lab import report
from normlab.lab.analysis import analyse
from normlab.lab.experiment import Experiment
from normlab.lab.report import markdown, shifts


@dataclass
class ShiftedRun(FakeRun):
    rows: tuple[tuple[Any, Any, Any], ...] = ()

    def events(self) -> list[dict[str, Any]]:
        names = ("shift", "images", "error")
        found = [{"event": "shift", **dict(zip(names, row))} for row in self.rows]
        return [*super().events(), *found]


def runs(seeds: int = 3) -> list[ShiftedRun]:
    """Batch norm that 10 images mend in the dark, and group norm, which stays."""
    found = []
    for seed in range(seeds):
        more = seed / 10
        rows = [("none", 0, 10.0), ("dark", 0, 60.0), ("dark", 1, None), ("dark", 10, 20.0 + more)]
        rows += [("dark", 1000, 12.0 + more)]
        batch = [(s, n, None if e is None else e + more) for s, n, e in rows]
        group = [("none", 0, 11.0 + more), ("dark", 0, 15.0 + more)]
        for norm, given in (("batch", batch), ("group", group)):
            e = Experiment(norm=norm, seed=seed, shift="all")
            found.append(ShiftedRun(e, path=Path(f"{norm}-{seed}"), rows=tuple(given)))
    return found


def test_table_has_the_error_by_images():
    table = shifts.table(analyse(runs()))
    assert table.columns == ("shift", "norm", "batch size", "as trained", "1", "10", "1,000")
    cells = {row[:2]: row[3:] for row in table.rows}
    assert cells["dark", "batch"] == ("60.1 ± 0.1", "—", "20.2 ± 0.2", "12.2 ± 0.2")
    assert cells["dark", "group"] == ("15.1 ± 0.1", "—", "—", "—")


def test_sentence_says_from_how_many_images_on():
    (said,) = shifts.sentences(analyse(runs()))
    assert said == (
        "Under dark, batch at a batch size of 32 is better with the statistics of 10 images than "
        "as it was trained, most with 1,000 (−47.9 points, 3 seeds)."
    )


def test_what_makes_no_difference_is_said_so():
    same = [ShiftedRun(r.experiment, path=r.path, rows=(("none", 0, 9.0 + i), ("none", 30, 9.1)))
            for i, r in enumerate(runs()) if r.experiment.norm == "batch"]  # fmt: skip
    (said,) = shifts.sentences(analyse(same))
    assert said.startswith("Without a shift, batch at a batch size of 32 is not significantly")


def test_every_shift_has_a_panel():
    figure = shifts.figure(analyse(runs()))
    assert [name for name, _ in figure.panels] == ["none", "dark"]
    assert [name for _, name in figure.legend] == ["batch, batch size 32", "group, batch size 32"]
    assert "group, seed 0, 0 images: 15.00 %" in figure.panels[1][1]


def test_page_and_markdown_have_it(tmp_path):
    out = report.build(runs(), [], title="Which?", note="", out=tmp_path / "report.html")
    assert "Statistics re-estimated from a few images" in out.read_text()
    assert "As trained: with running averages" in markdown.as_markdown(analyse(runs()))


def test_runs_that_were_not_judged_make_no_section():
    assert shifts.section(analyse([FakeRun(Experiment(norm="batch"))]), []) is None


@pytest.mark.parametrize(
    "row",
    [
        pytest.param((None, 3, 10.0), id="no shift"),
        pytest.param(("dark", "3", 10.0), id="a number as text"),
        pytest.param(("dark", -3, 10.0), id="fewer than none"),
        pytest.param(("dark", 2**70, 10.0), id="more than there are"),
    ],
)
def test_rows_that_make_no_sense_are_left_out(row):
    odd = [ShiftedRun(Experiment(norm="batch", seed=s), path=Path(str(s)), rows=(row,))
           for s in (0, 1)]  # fmt: skip
    assert shifts.section(analyse(odd), []) is None


def test_error_that_is_no_number_is_a_dash():
    odd = [ShiftedRun(Experiment(norm="batch"), rows=(("dark", 0, 9.0), ("dark", 3, "x")))]
    assert shifts.table(analyse(odd)).rows[0][-1] == "—"
