"""The report as Markdown with its figures beside it, and the pages of docs/results made of it."""

import re
import runpy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from fake_runs import FakeRun, folder_of_runs, thirty_runs
from test_conversions import three_seeds
from test_probe_report import written_sweep

from normlab.cli import main
from normlab.lab import runs
from normlab.lab.analysis import analyse
from normlab.lab.experiment import Experiment
from normlab.lab.report import comparison, costs, markdown, picture

SCRIPT = Path(__file__).parent.parent / "scripts" / "result_pages.py"
SVG = "{http://www.w3.org/2000/svg}"


def test_answer_and_figure_come_first(tmp_path: Path) -> None:
    page, figure, cost = markdown.write(
        analyse(thirty_runs()), "Which?", tmp_path / "a b.md", "So."
    )
    title, answer, image, note, said, *_ = page.read_text().split("\n\n")
    assert title == "# Which?"
    assert answer.startswith("**At a normalization batch of 2, ")
    assert image == "![Validation error by normalization batch](a%20b.svg)"
    assert note.startswith("<sub>Validation error of 30 runs.")
    assert said == "> So."
    assert (figure.name, cost.name) == ("a b.svg", "a b-cost.svg")
    assert "![Time and memory of a step by norm](a%20b-cost.svg)" in page.read_text()


def test_every_run_is_in_a_folded_list_without_its_folder() -> None:
    places = {"data": "folder:/machine/a b/cells", "weights": "/machine/w"}
    found = [Experiment(seed=s, **places) for s in range(2)]
    a = analyse([FakeRun(e, path=Path("/machine/runs/x")) for e in found])
    text = markdown.as_markdown(a)
    (folded,) = re.findall(r"<summary>Runs: 2 rows</summary>\n\n(.*?)</details>", text, re.DOTALL)
    assert folded.count("| counted | 12.00 |") == 2
    assert "/machine" not in text
    assert "| data | folder:cells |" in text


def test_long_tables_are_folded_and_short_ones_read() -> None:
    text = markdown.as_markdown(analyse(thirty_runs()))
    shown = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    assert "## Validation error in %" in shown
    lengths = [len(t.splitlines()) - 2 for t in re.findall(r"(?:^\|.*\n)+", shown, re.MULTILINE)]
    assert max(lengths) <= markdown._MAX_ROWS


def figures() -> dict[str, Any]:
    swept, at_one = analyse(thirty_runs()), analyse([FakeRun(Experiment(norm="<b>&"))])
    return {
        "lines": comparison.headline_figure(swept),
        "rows": comparison.headline_figure(at_one),
        "panels and legend": comparison.headline_figure(three_seeds()),
        "a choice": costs.figure(swept),
    }


@pytest.mark.parametrize("figure", figures().values(), ids=figures())
def test_figure_stands_alone(figure: Any) -> None:
    svg = ET.fromstring(picture.alone(figure))
    width, height = map(float, svg.attrib["viewBox"].split()[2:])
    assert (float(svg.attrib["width"]), float(svg.attrib["height"])) == (width, height)
    for part in svg.findall(f"{SVG}svg"):
        x, y, w, h = (float(part.attrib[k]) for k in ("x", "y", "width", "height"))
        assert x + w <= width
        assert y + h <= height
    tags = {element.tag.removeprefix(SVG) for element in svg.iter()}
    assert tags <= {"svg", "style", "rect", "g", "path", "circle", "text", "title"}
    style = svg.findtext(f"{SVG}style") or ""
    used = set(re.findall(r"var\(--(\w+)\)", style))
    assert used <= set(re.findall(r"--(\w+):", style))
    assert not re.search(r"url\(|@import|http", style)


def test_figure_has_colours_in_a_browser(watched: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.svg"
    file.write_text(picture.alone(figures()["panels and legend"]))
    page = watched.open(file)
    colours = page.evaluate(
        "[...document.querySelectorAll('.line')].map(e => getComputedStyle(e).stroke)"
    )
    assert len(set(colours)) == 3
    assert "none" not in colours


def test_conversions_are_the_answer_of_a_folder_of_them() -> None:
    text = markdown.as_markdown(three_seeds())
    assert text.split("\n\n")[1].startswith("**Right after conversion, ")
    assert text.index("## Conversion\n") < text.index("## Validation error in %")


def test_script_makes_a_page_and_an_index(tmp_path: Path, capsys: Any) -> None:
    root = folder_of_runs(tmp_path / "runs", 2, 4)
    make = runpy.run_path(str(SCRIPT))["main"]
    out = tmp_path / "results"
    make([str(root), "one", "--title", "First?", "--folder", str(out)])
    make([str(root), "cifar_seven", "--folder", str(out)])
    assert {p.name for p in out.iterdir()} == {
        "README.md", "one.md", "one.svg", "one-cost.svg",
        "cifar_seven.md", "cifar_seven.svg", "cifar_seven-cost.svg",
    }  # fmt: skip
    assert str(tmp_path) not in "".join(p.read_text() for p in out.iterdir())
    index = (out / "README.md").read_text()
    assert "* [First?](one.md): At a normalization batch of 2, " in index
    assert "(cifar\\_seven.md)" not in index
    assert (out / "cifar_seven.md").read_text().startswith("# Which of seven norms")


@pytest.mark.parametrize("name", ["one two", "../one", "One"])
def test_script_refuses_names_that_are_no_files(name: str, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPT))["main"]([str(tmp_path), name])
    assert "a name is of a-z" in capsys.readouterr().err


def test_script_refuses_runs_without_a_result(tmp_path: Path, capsys: Any) -> None:
    runs.Run.create(tmp_path, Experiment())
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPT))["main"]([str(tmp_path), "x", "--folder", str(tmp_path)])
    assert "no finished run (1 found, 0 damaged); train some first" in capsys.readouterr().err


def test_command_takes_the_last_epochs(tmp_path: Path, capsys: Any) -> None:
    root = folder_of_runs(tmp_path / "runs", 1, 4)
    for last in ("1", "4"):
        assert main(["report", str(root), "--format", "csv", "--last", last]) == 0
    one, four = (text for text in capsys.readouterr().out.split("run,")[1:])
    assert one != four
    assert main(["report", str(root), "--last", "0"]) == 2
    assert "at least 1, not 0" in capsys.readouterr().err


def test_what_layers_gave_is_drawn_beside_the_page(tmp_path):
    found = written_sweep(tmp_path / "runs")
    page, *files = markdown.write(analyse(found), "Layers", tmp_path / "page.md", runs=found)
    text = page.read_text()
    drawn = [file.name for file in files if "-layer" in file.name]
    assert drawn
    assert all(f"]({name})" in text for name in drawn)
    assert "98 % of the values lie between" in text
    assert "Layers at the end of training" in text
