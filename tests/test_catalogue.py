"""The catalogue in a terminal and in docs/norms: nothing in it is written by hand."""

import importlib.util
import io
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch
from rich.console import Console

from normlab import cli, norms
from normlab.lab.report import catalogue, norm_pictures
from normlab.lab.report.norm_pictures import measured, of_pattern
from normlab.surgery import weights
from normlab.surgery.rules import is_plain

ROOT = Path(__file__).parent.parent
# of the catalogue itself: another test may have added norms of its own
OURS = [n for n in norms.available() if norms.parse(n)[0].__module__.startswith("normlab.")]
FIXED = {"frozen_batch"}  # its statistics are not those of the input
ENTRIES = {e.names[0]: e for _, entries in catalogue.families() for e in entries}


def script():
    spec = importlib.util.spec_from_file_location("norm_pages", ROOT / "scripts/norm_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def norm_pages():
    return script()


def shown(width):
    console = Console(width=width, record=True, file=io.StringIO())
    catalogue.show(console)
    return console.export_text()


def test_every_norm_and_norm_of_weights_has_an_entry():
    assert {*OURS, *weights.NORMS} == {e.names[0] for _, es in catalogue.families() for e in es}


@pytest.mark.parametrize("name", [*OURS, *weights.NORMS])
def test_entry_says_what_it_is_and_where_it_comes_from(name):
    entry = ENTRIES[name]
    assert entry.sentence.endswith(".")
    assert entry.source
    assert re.search(r"^[\w']+(\(.*\))? = ", entry.doc, re.M), "no equation"


def test_catalogue_fits_80_columns_without_breaking_names_or_patterns():
    lines = shown(80).splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for name in OURS:
        assert re.search(rf"^{name}[, ]", text, re.M)
        assert ENTRIES[name].pattern in text


@pytest.mark.parametrize("name", [n for n in OURS if is_plain(norms.norm(n, 8)) and n not in FIXED])
def test_picture_of_a_pattern_is_what_the_layer_depends_on(name):
    """Geometry and kernels agree on what goes together."""
    layer = norms.norm(name, 32, dtype=torch.float64)
    assert of_pattern(layer.pattern, channels=32).marked == measured(layer).marked


@pytest.mark.parametrize(
    ("pattern", "shape", "marked"),
    [
        pytest.param("n c ... -> c", (4, 6, 4), {(n, 0, p) for n in range(4) for p in range(4)},
                     id="batch"),
        pytest.param("n (g=3 c) ... -> n g", (4, 6, 4), {(0, c, p) for c in (0, 1)
                     for p in range(4)}, id="groups"),
        pytest.param("(b n=2) c ... -> b c", (4, 6, 4), {(n, 0, p) for n in (0, 1)
                     for p in range(4)}, id="slices"),
        pytest.param("n c h w -> n h w", (4, 6, 4), {(0, c, 0) for c in range(6)}, id="position"),
        pytest.param("n c (b h) ... -> n b", (4, 6, 8), {(0, c, p) for c in range(6)
                     for p in range(4)}, id="bands of 2 rows of 2"),
        pytest.param("n c -> n", (4, 6, 1), {(0, c, 0) for c in range(6)}, id="no positions"),
        pytest.param("n (g=7 c) ... -> n g", (4, 14, 4), {(0, c, p) for c in (0, 1)
                     for p in range(4)}, id="groups that do not divide what is usual"),
    ],
)  # fmt: skip
def test_marks_are_the_values_of_the_first_statistic(pattern, shape, marked):
    picture = of_pattern(pattern)
    values = picture.marked
    assert (len(values), len(values[0]), len(values[0][0])) == shape
    assert marked == {
        (n, c, p)
        for n, panel in enumerate(values)
        for c, row in enumerate(panel)
        for p, cell in enumerate(row)
        if cell
    }


def test_norms_explains_one_with_its_own_groups(capsys):
    assert cli.main(["norms", "group:3"]) == 0
    out = capsys.readouterr().out
    assert "Wu and He 2018, https://arxiv.org/abs/1803.08494" in out
    assert 'statistics "n (g c) ... -> n g"' in out
    assert '"n (g=3 c) ... -> n g"' in out
    rows = re.findall(r"^channel \d+ +(.*)", out, re.M)
    assert len(rows) == 24
    assert [row.startswith("■ ■ ■ ■   · · · ·") for row in rows] == [True] * 8 + [False] * 16


def test_norms_explains_both_halves_of_a_spec():
    text = catalogue.explain("layer+ws")
    assert text.index("layer, ln: LayerNorm") < text.index("ws: Weight standardization")


def test_norm_without_statistics_says_so():
    assert "Nothing is averaged." in catalogue.explain("none")
    assert ENTRIES["dyt"].pattern == "nothing"


def test_explanation_fits_its_width():
    lines = norm_pictures.lines(of_pattern("n c ... -> n c", channels=64), 38)
    assert max(map(len, lines)) <= 38
    assert "⋮ 32 more channels" in lines
    assert "and 2 more samples" in lines


@pytest.mark.parametrize("name", ["grp", "group+xs", "group:x"])
def test_what_is_no_norm_is_wrong_usage(name, capsys):
    assert cli.main(["norms", name]) == 2
    assert "norm" in capsys.readouterr().err


def test_pages_are_those_of_the_norms(norm_pages):
    """Stale? python scripts/norm_pages.py"""
    made = norm_pages.pages()
    assert norm_pages.written() == made.keys(), "run python scripts/norm_pages.py"
    for name, text in made.items():
        there = (norm_pages.FOLDER / name).read_text(encoding="utf-8")
        assert there == text, f"{name}: run python scripts/norm_pages.py"


def test_links_of_pages_lead_somewhere(norm_pages):
    for file in norm_pages.FOLDER.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", file.read_text()):
            assert target.startswith("http") or (file.parent / target).exists(), (file, target)


def test_drawing_marks_as_many_values_as_the_picture(norm_pages):
    picture = of_pattern("n (g c) ... -> n g")
    root = ET.fromstring(norm_pages.svg(picture))
    cells, marks = (
        [g for g in root if g.get("fill") == fill][-1] for fill in ("none", norm_pages.MARK)
    )
    assert len(marks) == picture.count == 12
    assert len(cells) == 96 - 12
    assert picture.caption in root[0].text


def test_prose_of_a_docstring_is_no_markup(norm_pages):
    assert norm_pages.plain("a_b * c < `d_e`") == r"a\_b \* c \< `d_e`"
