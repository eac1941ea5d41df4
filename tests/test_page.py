"""The page in Debian's Chromium: what a person sees, clicks and reads, and what an attacker cannot.

Skipped where Chromium or Playwright is missing: `sh scripts/browser.sh` and `pip install
playwright`. The rules of axe-core (MPL) are fetched by the same script and not kept in git.
"""

import csv
import re
from pathlib import Path
from typing import Any

import pytest
from fake_runs import FakeRun, folder_of_runs, thirty_runs

from normlab.lab import report, runs
from normlab.lab.experiment import Experiment

AXE = Path(__file__).parent.parent / "build" / "axe" / "axe.min.js"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of thirty runs."""
    folder = tmp_path_factory.mktemp("page")
    found, damaged = runs.find(folder_of_runs(folder / "runs", 3))
    damaged.append((Path("runs/x"), "metrics.jsonl:3: damaged, not JSON"))
    return report.build(
        found, damaged, title="Which norm?", note="A small task.", out=folder / "report.html"
    )


PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def test_page_loads_from_disk_and_asks_for_nothing(watched: Any, built: Path) -> None:
    watched.open(built).wait_for_timeout(100)
    assert watched.requests == [built.as_uri()]
    assert (watched.complaints, watched.dialogs) == ([], [])


@pytest.mark.parametrize("watched", [{}, PHONE], indirect=True, ids=["desk", "phone"])
def test_headline_and_its_figure_are_seen_first(watched: Any, built: Path) -> None:
    page = watched.open(built)
    height = page.viewport_size["height"]
    for selector in (".headline", ".drawing:visible >> nth=0"):
        box = page.locator(selector).bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= height


@pytest.mark.parametrize("watched", [PHONE], indirect=True, ids=["390 pixels"])
def test_nothing_scrolls_sideways_on_a_phone(watched: Any, built: Path) -> None:
    page = watched.open(built)
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    # a table may be wider, within a frame that scrolls by itself
    outside = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, svg') "
        "&& e.getBoundingClientRect().right > 391).map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []


def test_pointer_on_a_dot_shows_run_seed_and_value(watched: Any, built: Path) -> None:
    page = watched.open(built)
    page.locator(".drawing.wide circle.seed").first.hover()
    shown = page.locator("#tip").inner_text()
    assert re.fullmatch(r"batch-b32-nb2-s0-\w+, seed 0: \d+\.\d\d %", shown)
    assert page.locator("#tip").bounding_box()["width"] > 100


def test_pointer_beside_a_thin_line_still_finds_its_run(watched: Any, built: Path) -> None:
    page = watched.open(built)
    spot = page.evaluate(
        "(() => { const p = document.querySelector('#learning path.seed-curve');"
        "p.scrollIntoView({block: 'center'}); const s = p.getPointAtLength(p.getTotalLength() / 3);"
        "const at = new DOMPoint(s.x, s.y).matrixTransform(p.getScreenCTM());"
        "return [at.x, at.y]; })()"
    )
    page.wait_for_timeout(50)
    page.mouse.move(spot[0], spot[1] + 3)
    assert re.search(r"seed \d: ", page.locator("#tip").inner_text())


def test_arrow_keys_go_through_the_runs_of_a_figure(watched: Any, built: Path) -> None:
    page = watched.open(built)
    page.locator(".drawing.wide").focus()
    said = []
    for key in ("ArrowRight", "ArrowRight", "End", "Home"):
        page.keyboard.press(key)
        said.append(page.locator("#tip").inner_text())
    assert re.search(r"seed \d|mean of", said[0])
    assert said[0] == said[3] != said[1] != said[2]
    page.keyboard.press("Escape")
    assert page.locator("#tip").inner_text() == ""


def test_sections_fold_by_keyboard_and_all_at_once(watched: Any, built: Path) -> None:
    page = watched.open(built)
    page.locator("#errors > summary").focus()
    page.keyboard.press("Enter")
    assert not page.locator("#errors").evaluate("d => d.open")
    page.locator("#fold").click()
    assert page.locator("details.section[open]").count() == 0
    page.locator("#fold").click()
    assert page.locator("details.section:not([open])").count() == 0


def test_link_to_a_folded_section_unfolds_it(watched: Any, built: Path) -> None:
    page = watched.open(built)
    assert not page.locator("#setting").evaluate("d => d.open")
    page.locator('nav a[href="#setting"]').click()
    page.wait_for_function("document.querySelector('#setting').open")
    page.goto(f"{built.as_uri()}#run-3")
    page.reload()
    assert page.locator("#run-3").evaluate("d => d.open")


def downloaded(watched: Any, button: Any) -> tuple[str, bytes]:
    with watched.page.expect_download() as waiting:
        button.click()
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


def test_every_figure_has_its_table_and_downloads(watched: Any, built: Path) -> None:
    page = watched.open(built)
    for figure in page.locator("figure.chart").all():
        assert figure.locator("table").count() == 1
        kinds = figure.locator("button[data-save]").evaluate_all("b => b.map(x => x.dataset.save)")
        assert sorted(kinds) == ["CSV", "PNG", "SVG"]


def test_csv_is_the_table(watched: Any, built: Path) -> None:
    page = watched.open(built)
    table = page.locator("#errors .table").first
    name, data = downloaded(watched, table.locator("[data-save=CSV]"))
    lines = data.decode("utf-8-sig").splitlines()
    assert name == "validation-error-in-by-normalization-batch.csv"
    assert lines[0] == "norm,2,4,8,16,32,any"
    assert len(lines) == 1 + table.locator("tbody tr").count()


def test_csv_has_numbers_to_compute_with_and_no_formulas(watched: Any, tmp_path: Path) -> None:
    formula = '=HYPERLINK("x","y")'
    found = [
        FakeRun(Experiment(norm=norm, seed=seed), [error + seed])
        for norm, error in (("batch", 20.0), (formula, 10.0))
        for seed in (0, 1)
    ]
    page = watched.open(report.build(found, [], title="T", note="", out=tmp_path / "r.html"))
    table = page.locator("#errors .table", has_text="Difference to batch norm").first
    _, data = downloaded(watched, table.locator("[data-save=CSV]"))
    (row,) = list(csv.reader(data.decode("utf-8-sig").splitlines()))[1:]
    assert row[0] == f"'{formula}"
    assert float(row[2]) == -10.0


@pytest.mark.parametrize("place", ["main > figure", "#learning figure"], ids=["one", "panels"])
def test_svg_stands_alone(place: str, watched: Any, built: Path) -> None:
    page = watched.open(built)
    _, data = downloaded(watched, page.locator(place).first.locator("[data-save=SVG]"))
    text = data.decode()
    assert "var(" not in text
    assert "class=" not in text
    assert "seed 0" in text
    page.goto("about:blank")
    root = page.evaluate(
        "t => { const d = new DOMParser().parseFromString(t, 'image/svg+xml');"
        "return [d.documentElement.tagName, d.querySelectorAll('path').length]; }",
        text,
    )
    assert root[0] == "svg"
    assert root[1] > 10


def test_png_is_an_image_of_the_figure(watched: Any, built: Path) -> None:
    from PIL import Image

    page = watched.open(built)
    with page.expect_download() as waiting:
        page.locator("main > figure [data-save=PNG]").first.click()
    with Image.open(waiting.value.path(), formats=["PNG"]) as image:
        assert image.size == (3 * (720 + 16), 3 * (372 + 8))  # the drawing and its margins
        assert len(image.convert("RGB").getcolors(10**7) or []) > 20
    assert watched.complaints == []


def brightness(page: Any) -> float:
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3


@pytest.mark.parametrize(
    "watched", [{"color_scheme": "dark"}], indirect=True, ids=["dark is preferred"]
)
def test_colours_follow_the_system_and_the_button(watched: Any, built: Path) -> None:
    page = watched.open(built)
    assert brightness(page) < 50
    page.locator("#theme").click()
    assert brightness(page) > 200
    page.reload()
    assert brightness(page) > 200


def test_paper_shows_folded_sections_and_no_buttons(watched: Any, built: Path) -> None:
    page = watched.open(built)
    page.locator("#theme").click()  # dark
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert brightness(page) == 255
    assert page.locator("#setting table").is_visible()
    assert page.locator("button:visible").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not page.locator("#setting").evaluate("d => d.open")


@pytest.mark.parametrize(
    ("watched", "rules"),
    [
        pytest.param({}, [], id="light"),
        pytest.param({"color_scheme": "dark"}, ["color-contrast"], id="dark"),
        pytest.param(PHONE, ["scrollable-region-focusable", "target-size"], id="phone"),
    ],
    indirect=["watched"],
)
def test_axe_finds_no_serious_fault(watched: Any, built: Path, rules: list[str]) -> None:
    """All rules once; those that depend on colours and widths again."""
    if not AXE.is_file():
        pytest.skip("axe-core is not there; sh scripts/browser.sh fetches it")
    page = watched.open(built)
    page.evaluate(
        "for (const d of document.querySelectorAll('details.section, #run-1, .numbers'))"
        "for (let p = d; p; p = p.parentElement) if (p.tagName === 'DETAILS') p.open = true"
    )
    page.evaluate(AXE.read_text(encoding="utf-8"))
    options = {"resultTypes": ["violations"], **({"runOnly": rules} if rules else {})}
    found = page.evaluate("options => axe.run(document, options)", options)
    faults = [
        (v["id"], v["impact"], v["nodes"][0]["html"][:200], v["nodes"][0]["failureSummary"])
        for v in found["violations"]
        if v["impact"] in ("serious", "critical", "moderate")
    ]
    assert faults == []
    assert len(found["passes"]) >= (1 if rules else 20)


def test_page_of_200_runs_is_small_and_whole(watched: Any, tmp_path: Path) -> None:
    found, damaged = runs.find(folder_of_runs(tmp_path / "runs", 20, num_epochs=60))
    assert len(found) == 200
    out = report.build(found, damaged, title="200 runs", note="", out=tmp_path / "report.html")
    assert out.stat().st_size < 3_000_000
    page = watched.open(out)
    assert page.locator("details.run").count() == 200


@pytest.mark.parametrize("how_many", [0, 1])
def test_few_runs_make_a_quiet_page(how_many: int, watched: Any, tmp_path: Path) -> None:
    found = thirty_runs()[:how_many]
    page = watched.open(report.build(found, [], title="Few", note="", out=tmp_path / "report.html"))
    assert page.locator(".headline").inner_text() != ""
    assert page.locator("details.run").count() == how_many
    assert watched.complaints == []


def test_watched_page_comes_again_as_it_was_left(watched: Any, tmp_path: Path) -> None:
    import threading

    from normlab.lab.report import serve

    root = folder_of_runs(tmp_path / "runs", 1)
    page_1, page_2 = (serve._page([root], "Live", version) for version in ("1", "2"))
    server = serve.Server(page_1, "1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        page = watched.page
        page.goto(server.address)
        page.locator("#groups > summary").click()
        page.evaluate("scrollTo(0, 300)")
        server.show(page_2, "2")
        page.wait_for_selector("html[data-watch='2']", state="attached", timeout=10_000)
        page.wait_for_function("scrollY === 300")
        assert not page.locator("#groups").evaluate("d => d.open")
        assert page.locator("#errors").evaluate("d => d.open")
        assert [c for c in watched.complaints if "favicon" not in c] == []
        assert {u.rpartition("/")[0] + "/" for u in watched.requests} == {server.address}
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
