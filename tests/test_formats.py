"""The report's numbers for other tools: strict, harmless, and the same as on the page."""

import contextlib
import csv
import io
import json
import math
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_runs import PAYLOADS, FakeRun, thirty_runs

from normlab.cli import main
from normlab.lab import runs
from normlab.lab.analysis import analyse
from normlab.lab.experiment import Experiment
from normlab.lab.report import ReportError, figures, formats, markdown, pairs, tables
from normlab.lab.report.tables import Table

NOTEBOOK = Path(__file__).parent.parent / "examples" / "runs_with_pandas.ipynb"


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four real run folders, two seeds of two norms, and a damaged one."""
    root = tmp_path / "runs"
    for norm, shift in (("batch", 10.0), ("group", 0.0)):
        for seed in (0, 1):
            run = runs.Run.create(root, Experiment(norm=norm, seed=seed))
            run.log("start", num_parameters=5, bytes_saved=320, num_train=64, num_validation=16)
            for k in (1, 2):
                run.log(
                    "epoch", epoch=k, step=2 * k, samples=64 * k, train_error=5.0 + seed,
                    validation_error=20.0 + shift + seed - k, seconds_train=0.5,
                )  # fmt: skip
            run.set_status("finished")
    (root / "broken").mkdir()
    (root / "broken" / "experiment.json").write_text("{")
    return root


def test_json_holds_every_number_unrounded() -> None:
    a = analyse(thirty_runs())
    found = strict(formats.as_json(a, "Which?"))
    assert found["title"] == "Which?"
    assert len(found["runs"]) == 30
    means = {(g["series"], g["x"]): g["mean"] for g in found["groups"]}
    assert means == {(s.label, x): g.mean for s in a.series for x, g in s.groups.items()}
    assert [d["value"] for d in found["differences"]] == [d.value for *_, d in a.differences()]
    assert [d["value"] for d in found["differences_paired"]] == [d.value for *_, d in a.paired()]


@pytest.mark.parametrize(
    "errors",
    [
        pytest.param([], id="122: no epoch"),
        pytest.param([math.nan, math.inf, -math.inf], id="123: NaN and infinity"),
        pytest.param([None], id="123: null"),
    ],
)
def test_json_is_strict(errors: list[Any]) -> None:
    found = strict(formats.as_json(analyse([FakeRun(Experiment(), errors)])))
    assert found["runs"][0]["error"] is None


@pytest.mark.parametrize("format", ["md", "csv", "json"])
def test_122_no_runs_are_no_error(format: str) -> None:
    assert formats.FORMATS[format](analyse([]), "")


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=[f"124: {k}" for k in PAYLOADS])
def test_names_do_nothing_in_any_format(payload: str) -> None:
    found = [
        FakeRun(Experiment(norm=norm, data=payload, seed=s), [9.0 + s])
        for norm in ("batch", payload)
        for s in (0, 1)
    ]
    found[0].status = {"state": "failed", "cause": payload}
    a = analyse(found, [(payload, payload)])
    assert strict(formats.as_json(a, payload))["runs"][0]["run"]
    page = formats.as_markdown(a, payload)
    assert "<" not in re.sub(r"</?(details|summary)>", "", page)
    assert not re.search(r"(?<!\\)\]\(", page)
    for text in (page, formats.as_csv(a, payload)):
        assert all(c.isprintable() or c == "\n" for c in text)
    for row in rows_of(formats.as_csv(a, payload)):
        assert not any(cell.startswith(("=", "+", "-", "@")) for cell in row.values())


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        pytest.param("=1+1", "'=1+1", id="S12: formula"),
        pytest.param("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0", id="S12: plus"),
        pytest.param("-2+3", "'-2+3", id="S12: minus"),
        pytest.param("@SUM(A1)", "'@SUM(A1)", id="S12: at"),
        pytest.param("＝1+1", "'＝1+1", id="S12: full width"),
        pytest.param("−3.5", "-3.5", id="a number keeps its sign"),
        pytest.param("+3.5", "+3.5", id="a signed number is no formula"),
        pytest.param("1_000", "1_000", id="text that only Python reads as a number"),
        pytest.param("a,b", '"a,b"', id="comma"),
        pytest.param('a"b', '"a""b"', id="quote"),
    ],
)
def test_cells_are_quoted_where_a_spreadsheet_would_run_them(cell: str, written: str) -> None:
    assert formats.table_as_csv(Table("t", ["c"], [[cell]])) == f"c\n{written}\n"


def test_csv_has_a_row_for_each_run_and_a_column_for_each_field() -> None:
    a = analyse(thirty_runs())
    rows = rows_of(formats.as_csv(a))
    assert [row["run"] for row in rows] == [r.name for r in a.results]
    assert [float(row["error"]) for row in rows] == [r.error for r in a.results]
    assert {row["experiment.norm"] for row in rows} == {s.norm for s in a.series}


def test_markdown_has_the_tables_of_the_page() -> None:
    a = analyse(thirty_runs())
    text = formats.as_markdown(a, "Which?")
    assert text.startswith("# Which?\n\n**At a normalization batch of 2")
    for table in (tables.errors(a), tables.differences(a), pairs.table(a), tables.cost(a)):
        assert f"## {table.title}\n" in text or f"<summary>{table.title}: " in text
        for row in table.rows:
            assert "| " + " | ".join(row) + " |" in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("# no heading", "\\# no heading"),
        ("1. no list", "1\\. no list"),
        ("- no list", "\\- no list"),
        ("1.5 points", "1.5 points"),
        ("[a](b) |", "\\[a\\](b) \\|"),
    ],
)
def test_markdown_paragraphs_are_only_text(text: str, shown: str) -> None:
    assert markdown._paragraph(text) == shown


def test_command_prints_json_and_nothing_else(folder: Path, capsys) -> None:
    assert main(["report", str(folder), "--format", "json"]) == 0
    found = strict(capsys.readouterr().out)
    assert [r["error"] for r in found["runs"]] == [28.5, 29.5, 18.5, 19.5]
    assert found["headline"][0].startswith("At a batch size of 32, group is 10.0")
    assert len(found["damaged"]) == 1


@pytest.mark.parametrize("format", ["md", "csv", "json"])
def test_command_writes_the_file_it_is_given(folder: Path, format: str, capsys) -> None:
    out = folder.parent / f"numbers.{format}"
    assert main(["report", str(folder), "--format", format, "--out", str(out)]) == 0
    main(["report", str(folder), "--format", format])
    assert out.name in (printed := capsys.readouterr().out)
    assert re.sub(r"!\[.*\n\n<sub>.*</sub>\n\n", "", out.read_text()) in printed


def test_command_writes_a_csv_of_each_table(folder: Path) -> None:
    out = folder.parent / "tables"
    assert main(["report", str(folder), "--format", "csv", "--out", str(out)]) == 0
    (row,) = rows_of((out / "difference-to-batch-norm.csv").read_text())
    assert (row["norm"], float(row["difference"])) == ("group", -10)
    assert len(rows_of((out / "runs.csv").read_text())) == 4


def test_watch_is_for_the_page_only(folder: Path, capsys) -> None:
    assert main(["report", str(folder), "--format", "md", "--watch"]) == 2
    assert "--watch shows the page, not md" in capsys.readouterr().err


def test_figures_name_what_is_missing(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'need matplotlib: pip install "normlab\[figures\]"'):
        figures.save(analyse(thirty_runs()), tmp_path, "png")


def test_figures_of_nothing_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="nothing to draw; train some first"):
        figures.save(analyse([]), tmp_path, "svg")


@pytest.mark.parametrize(
    ("format", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF-")]
)
def test_figures_are_files_of_their_format(format: str, start: bytes, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = figures.save(analyse(thirty_runs()), tmp_path / "new", format)
    assert [f.name for f in files] == [f"error.{format}", f"curves.{format}"]
    assert all(f.read_bytes().startswith(start) for f in files)


def test_figures_are_the_same_bytes_again(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    first, second = (
        [f.read_bytes() for f in figures.save(analyse(thirty_runs()), tmp_path / k, "svg")]
        for k in "ab"
    )
    assert first == second


def test_124_names_with_two_dollars_are_no_formula(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = [FakeRun(Experiment(norm="$\\undefined$", seed=s), [9.0 + s]) for s in (0, 1)]
    (file, _) = figures.save(analyse(found), tmp_path, "svg")
    assert "$\\undefined$" in file.read_text()


def test_notebook_runs_on_run_folders(folder: Path, monkeypatch) -> None:
    pytest.importorskip("pandas")
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    script = folder.parent / "notebook.py"
    script.write_text("\n".join(code))
    monkeypatch.setenv("RUNS", str(folder))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        names = runpy.run_path(str(script))
    assert names["table"].loc["group", 32]["mean"] == 19
    assert "18.5" in printed.getvalue()


def test_notebook_keeps_no_output() -> None:
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs")
