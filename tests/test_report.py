"""The page of a comparison: complete, self-contained, and safe whatever the runs are called."""

import base64
import hashlib
import io
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_runs import PAYLOADS, FakeRun, folder_of_runs, thirty_runs
from rich.console import Console

from normlab.lab import report, runs
from normlab.lab.analysis import analyse
from normlab.lab.experiment import Experiment
from normlab.lab.report import charts, draw, tables
from normlab.lab.report.console import print_tables


class Page(HTMLParser):
    """Elements with the names of their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.values: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.values += [value or "" for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(found: list, tmp_path: Path, damaged: Any = (), **text: str) -> str:
    text = {"title": "Which norm?", "note": "", **text}
    out = report.build(found, damaged, out=tmp_path / "report.html", **text)
    return out.read_text(encoding="utf-8")


def test_thirty_runs_make_a_small_complete_page(tmp_path: Path) -> None:
    page = page_of(thirty_runs(), tmp_path, note="A small task.")
    parsed = Page(page)
    assert len(page.encode()) < 300_000
    ids = re.findall(r' id="([^"]+)"', page)
    assert {"errors", "learning", "groups", "cost", "runs", "setting", "run-30"} <= set(ids)
    assert len(ids) == len(set(ids))
    for words in ("Which norm?", "A small task.", "At a normalization batch of 2"):
        assert words in parsed.text
    for run in thirty_runs():
        assert run.experiment.name in parsed.text


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=[f"S11, 124: {k}" for k in PAYLOADS])
def test_no_text_becomes_an_element_or_attribute(payload: str, tmp_path: Path) -> None:
    def page(text: str) -> Page:
        fields = {"data": text, "model": text, "weights": text}
        found = [
            FakeRun(Experiment(norm=norm, batch_size=size, seed=seed, **fields), path=Path("runs"))
            for norm in ("batch", text)
            for size in (2, 8)
            for seed in (0, 1)
        ]
        found[0].status = {"state": "failed", "cause": text}
        found[1].status = {"state": text}
        (tmp_path / "environment.json").write_text('{"host": "x"}')
        damaged = [(text, text)]
        return Page(page_of(found, tmp_path, damaged, title=text, note=text))

    harmless, hostile = page("plain"), page(payload)
    # The order of runs depends on their names, a class on the length of a text.
    assert Counter(map(_shape, hostile.elements)) == Counter(map(_shape, harmless.elements))
    assert not any(not (c.isprintable() or c == "\n") for c in hostile.text)


def _shape(element: tuple[str, tuple[str, ...]]) -> tuple[str, tuple[str, ...]]:
    tag, names = element
    return tag, tuple(n for n in names if n != "class")


def test_direction_marks_are_shown_as_escapes() -> None:
    assert tables.clean("a\u202eb\x1b[31m\n") == r"a\u202eb\x1b[31m\n"


def test_home_folder_is_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_home", lambda: "/home/someone")
    assert tables.clean("folder:/home/someone/cells") == "folder:~/cells"


def test_page_names_no_other_address(tmp_path: Path) -> None:
    page = page_of(thirty_runs(), tmp_path)
    parsed = Page(page)
    loading = {"link", "img", "iframe", "object", "base", "form"}
    assert not loading & {tag for tag, _ in parsed.elements}
    names = {n for _, found in parsed.elements for n in found}
    assert not {"src", "style", "xlink:href", "srcset"} & names
    assert all(link.startswith("#") for link in re.findall(r'href="([^"]*)', page))
    addresses = set(re.findall(r"https?://[\w./]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name of XML, never fetched
    assert not re.search(r"url\(|@import", page)


@pytest.mark.parametrize("tag", ["style", "script"])
def test_policy_allows_this_text_and_nothing_else(tag: str, tmp_path: Path) -> None:
    page = page_of(thirty_runs(), tmp_path)
    (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    (policy,) = [v for v in Page(page).values if v.startswith("default-src")]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert rules.keys() <= {
        "default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"
    }  # fmt: skip
    assert (rules["default-src"], rules["img-src"]) == ("'none'", "data:")


@pytest.mark.parametrize(
    "svg",
    [
        "<svg><script/></svg>",
        '<svg onload="x()"/>',
        '<svg><a href="x"/></svg>',
        '<svg><image href="x"/></svg>',
        '<svg style="x"/>',
    ],
)
def test_drawing_that_could_act_or_load_is_a_mistake(svg: str) -> None:
    with pytest.raises(AssertionError, match="in a figure"):
        draw.checked(svg)


def test_script_writes_text_never_markup() -> None:
    script = (Path(report.__file__).parent / "page.js").read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", script)


def test_a_part_of_its_own_shows_what_a_run_is(tmp_path: Path) -> None:
    found, damaged = runs.find(folder_of_runs(tmp_path / "runs", 1))
    page = page_of(found, tmp_path, damaged)
    (part,) = re.findall(rf'<details class="run"[^>]*><summary><span>{found[0].experiment.name}<.*?'
                         r"</pre>\s*</details>", page, re.DOTALL)  # fmt: skip
    for words in ("<svg", "learning_rate: 0.1", "host: desk", "num_parameters: 77000", f"{0:064x}"):
        assert words in part


def test_environment_that_is_damaged_is_left_out(tmp_path: Path) -> None:
    found, _ = runs.find(folder_of_runs(tmp_path / "runs", 1))
    (found[0].path / "environment.json").write_text('{"python": "3.')
    (found[1].path / "environment.json").write_text("[" * 10_000)
    assert page_of(found, tmp_path).count("host: desk") == len(found) - 2


@pytest.mark.parametrize(
    ("errors", "state"),
    [
        pytest.param([], "running", id="F29: nothing written yet"),
        pytest.param([None, None], "finished", id="123: null"),
        pytest.param([float("nan"), float("inf")], "diverged", id="123: NaN and infinity"),
        pytest.param([0.0, 0.0, 0.0], "finished", id="no error at all"),
        pytest.param([100.0], "finished", id="one epoch, all wrong"),
        pytest.param([10.0, None, 10.0, 10.0, 10.0], "finished", id="a hole in the curve"),
    ],
)
@pytest.mark.parametrize("sizes", [(8,), (1, 8)], ids=["one size", "two sizes"])
def test_odd_numbers_make_a_page(
    errors: list[Any], state: str, sizes: tuple[int, ...], tmp_path: Path
) -> None:
    found = [FakeRun(Experiment(batch_size=b), errors, {"state": state}) for b in sizes]
    page = page_of(found, tmp_path)
    assert found[0].experiment.name in page
    results, _, _ = page.partition('id="setting"')  # where None is a value
    assert not re.search(r"\b(nan|NaN|inf|Infinity|None)\b", results)


def test_122_report_of_no_runs_says_so(tmp_path: Path) -> None:
    text = Page(page_of([], tmp_path)).text
    assert "No run has finished, so there is nothing to compare yet." in text


def test_f29_damaged_and_unfinished_runs_are_listed(tmp_path: Path) -> None:
    found = thirty_runs()
    found[0].status = {"state": "diverged", "cause": "loss is NaN at step 12"}
    text = Page(page_of(found, tmp_path, [(Path("runs/x"), "metrics.jsonl:3: not JSON")])).text
    for words in ("loss is NaN at step 12", "metrics.jsonl:3: not JSON", "1 diverged", "29 runs"):
        assert words in text


def test_123_very_long_curves_are_thinned(tmp_path: Path) -> None:
    found = [FakeRun(Experiment(seed=s), [50.0] * 50_000) for s in range(2)]
    assert len(page_of(found, tmp_path)) < 80_000


@pytest.mark.parametrize(
    ("high", "found"),
    [(3e-12, [0, 1e-12, 2e-12, 3e-12]), (7.5, [0, 2.5, 5, 7.5]), (6e9, [0, 2e9, 4e9, 6e9])],
    ids=["tiny", "usual", "huge"],
)
def test_ticks_of_any_size_are_round(high: float, found: list[float]) -> None:
    assert draw.ticks(0, high, 3) == found


def test_norms_have_colours_of_their_own() -> None:
    norms = ("batch", "group", "layer", "rms", "batch_instance", "position", "switchable", "dyt")
    colours = charts.colour_classes(analyse([FakeRun(Experiment(norm=n)) for n in norms]))
    assert [colours[n] for n in norms[:3]] == ["c0", "c1", "c2"]
    assert len(set(colours.values())) == 8


def test_every_dot_names_its_run_and_value() -> None:
    figure = charts.error_by_batch(analyse(thirty_runs()), 720, 400)
    for run in thirty_runs():
        titles = re.findall(rf"<title>{run.experiment.name}, seed \d: ([\d.]+) %</title>", figure)
        assert titles == [f"{sorted(run.errors)[1]:.2f}"]


def test_paper_numbers_stand_in_a_table_of_their_own(tmp_path: Path) -> None:
    a = analyse(thirty_runs())
    ours, theirs = tables.groups(a), tables.published()
    assert [row[0] for row in ours.rows] == ["layer", "group:1", "group", "instance"]
    assert [row[1] for row in theirs.rows][:3] == ["24.6", "24.1", "24.6"]
    assert theirs.title.startswith("Published")
    assert "Published: ImageNet, ResNet-50" in Page(page_of(thirty_runs(), tmp_path)).text


def test_group_options_are_ordered_from_few_groups_to_many() -> None:
    norms = ("instance", "group:size=2", "group:8", "group", "layer", "group:size=8", "group:2")
    a = analyse([FakeRun(Experiment(norm=n)) for n in norms])
    order = ["layer", "group:2", "group:8", "group", "group:size=8", "group:size=2", "instance"]
    assert [row[0] for row in tables.groups(a).rows] == order


def test_cost_is_compared_at_the_same_batch_size() -> None:
    rows = {row[0]: row for row in tables.cost(analyse(thirty_runs())).rows}
    assert rows["group"][1:] == ("any", "0.366", "1.00", "0.0312", "1.00", "77,000")


def test_setting_tells_equal_from_varied_fields() -> None:
    table = tables.setting(analyse(thirty_runs()), {"torch": "2.14.1"})
    rows = {name: rest for name, *rest in table.rows}
    assert rows["norm_batch_size"] == ["2, 4, 8, 16, 32, None", "compared, the axis"]
    assert rows["batch_size"] == ["32", ""]
    assert rows["torch"] == ["2.14.1", ""]


def test_terminal_shows_markup_and_escapes_as_text() -> None:
    shown = io.StringIO()
    name = "[red]x[/red]\x1b[2J"
    a = analyse([FakeRun(Experiment(norm=n)) for n in ("batch", name)])
    print_tables(Console(file=shown, width=120, force_terminal=False), tables.results(a))
    assert r"[red]x[/red]\x1b[2J" in shown.getvalue()
    assert "\x1b" not in shown.getvalue()


def test_failed_write_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page_of([], tmp_path, title="old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.os, "fsync", full)
    with pytest.raises(report.ReportError, match=r"cannot write the report to .*No space left"):
        page_of([], tmp_path, title="new")
    assert "old" in (tmp_path / "report.html").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_folder_in_place_of_the_page_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(report.ReportError, match="choose a file in a folder you may write to"):
        page_of([], tmp_path)


def test_real_run_folder_becomes_a_page(tmp_path: Path) -> None:
    run = runs.Run.create(tmp_path / "runs", Experiment())
    run.record_environment("cpu")
    run.log("start", num_parameters=5, bytes_saved=100, num_train=64, num_validation=16)
    run.log("epoch", epoch=1, samples=64, train_error=7.0, validation_error=8.5, seconds_train=0.1)
    run.set_status("finished")
    found, damaged = runs.find(tmp_path / "runs")
    text = Page(page_of(found, tmp_path, damaged)).text
    assert "The validation error is that of group at a batch size of 32, 8.5 % (1 seed)." in text
    assert "python" in text
