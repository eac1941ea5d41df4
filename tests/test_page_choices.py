"""What a reader chooses on the page: curves by samples, epochs or steps, costs by batch size."""

import re
from pathlib import Path
from typing import Any

import pytest
from fake_runs import FakeRun, thirty_runs

from normlab.lab import report
from normlab.lab.analysis import Analysis, analyse
from normlab.lab.experiment import Experiment
from normlab.lab.report import ReportError, comparison, curves, figures, serve
from normlab.lab.results import Epoch


class StepRun(FakeRun):
    """A run that recorded its steps."""

    def events(self) -> list[dict[str, Any]]:
        size = self.experiment.batch_size
        return [{**e, "step": e.get("samples", 0) // size} for e in super().events()]


def two_sizes(kind: type[FakeRun] = StepRun) -> list[FakeRun]:
    return [
        kind(Experiment(norm=n, batch_size=b, seed=s))
        for n in ("batch", "group")
        for b in (2, 8)
        for s in (0, 1)
    ]


def analysis(kind: type[FakeRun] = StepRun) -> Analysis:
    return analyse(two_sizes(kind))


@pytest.fixture
def built(tmp_path: Path) -> Path:
    return report.build(two_sizes(), [], title="Which?", note="", out=tmp_path / "report.html")


def ends(svg: str) -> list[str]:
    """Numbers of an axis from left to right."""
    return re.findall(r'<text class="tick middle" x="[\d.]+" y="210.0">([^<]+)<', svg)


def test_every_axis_has_its_own_numbers() -> None:
    # 4 epochs of 4,096 images are 16,384, in batches of 2 8,192 steps
    last = {by: ends(curves.error_curves(analysis(), by)[0][1])[-1] for by in curves.AXES}
    assert last == {"samples": "10k", "epochs": "4", "steps": "5k"}


def test_place_on_each_axis_is_the_epoch_s_own() -> None:
    epoch = Epoch(samples=64, train_error=1.0, validation_error=2.0, epoch=3, step=7)
    assert [curves.place(epoch, by) for by in ("samples", "epochs", "steps")] == [64, 3, 7]


def test_axes_that_were_not_recorded_are_not_offered() -> None:
    assert curves.recorded(analysis()) == ["samples", "epochs", "steps"]
    without = analysis(FakeRun)
    assert curves.recorded(without) == ["samples", "epochs"]
    section = comparison.learning(without, [], "steps")
    assert section is not None
    assert section.figures[0].chosen == "samples"
    assert "Not every run has recorded its steps" in section.figures[0].note


def test_figure_for_papers_refuses_an_axis_that_was_not_recorded(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ReportError, match="recorded its steps; choose one of samples, epochs"):
        figures.save(analysis(FakeRun), tmp_path, "svg", by="steps")


@pytest.mark.parametrize("by", ["samples", "epochs", "steps"])
def test_page_begins_with_the_axis_it_was_asked_for(by: str, tmp_path: Path) -> None:
    out = report.build(two_sizes(), [], title="", note="", out=tmp_path / "r.html", by=by)
    page = out.read_text()
    shown = re.findall(r'<div class="drawing panels" data-of="(\w+)" tabindex', page)
    assert shown[0] == by  # the other is that of the costs
    assert f'data-choice="{by}" aria-pressed="true"' in page


def test_last_epochs_decide_the_result_and_are_named(tmp_path: Path) -> None:
    found = [FakeRun(Experiment(), [60.0, 20.0, 12.0, 10.0])]
    for last, error, words in (
        (1, "10.0", "error of its last epoch"),
        (4, "16.0", "last 4 epochs"),
    ):
        out = report.build(found, [], title="", note="", out=tmp_path / "r.html", last=last)
        page = out.read_text()
        assert f"{error} % (1 seed)" in page
        assert words in page


def visible(page: Any, section: str) -> list[str]:
    drawings = page.locator(f"#{section} .drawing[data-of]:visible")
    return [d.get_attribute("data-of") for d in drawings.all()]


def test_buttons_change_what_a_figure_is_drawn_against(watched: Any, built: Path) -> None:
    page = watched.open(built)
    assert visible(page, "learning") == ["samples"]
    page.locator("#learning button[data-choice=steps]").click()
    assert visible(page, "learning") == ["steps"]
    assert visible(page, "cost") == ["8"]
    pressed = page.locator("#learning button[aria-pressed=true]").all_inner_texts()
    assert pressed == ["steps"]
    assert watched.complaints == []


def test_keyboard_reaches_the_choices(watched: Any, built: Path) -> None:
    page = watched.open(built)
    page.locator("#cost button[data-choice='8']").focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert visible(page, "cost") == ["2"]
    page.locator("#cost .drawing:visible").focus()
    page.keyboard.press("End")
    assert "-b2-" in page.locator("#tip").inner_text()


def test_download_is_of_what_is_shown(watched: Any, built: Path) -> None:
    page = watched.open(built)
    page.locator("#learning button[data-choice=epochs]").click()
    with page.expect_download() as download:
        page.locator("#learning button[data-save=SVG]").click()
    saved = Path(download.value.path()).read_text()
    assert ">epochs<" in saved
    assert ">training images seen<" not in saved


@pytest.mark.parametrize("watched", [{"java_script_enabled": False}], indirect=True, ids=["none"])
def test_without_script_the_default_is_shown_and_nothing_to_choose(
    watched: Any, built: Path
) -> None:
    page = watched.open(built)
    assert visible(page, "learning") == ["samples"]
    assert page.locator(".choices:visible").count() == 0


PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.mark.parametrize("watched", [PHONE], indirect=True, ids=["390 pixels"])
def test_choices_fit_a_phone(watched: Any, tmp_path: Path) -> None:
    out = report.build(thirty_runs(), [], title="Which?", note="", out=tmp_path / "r.html")
    page = watched.open(out)
    assert page.locator(".choices:visible").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_watched_page_comes_again_with_what_was_chosen(watched: Any, tmp_path: Path) -> None:
    import threading

    from fake_runs import folder_of_runs

    root = folder_of_runs(tmp_path / "runs", 1)
    server = serve.Server(serve._page([root], "Live", "1"), "1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        page = watched.page
        page.goto(server.address)
        page.locator("#learning button[data-choice=epochs]").click()
        server.show(serve._page([root], "Live", "2"), "2")
        page.wait_for_selector("html[data-watch='2']", state="attached", timeout=10_000)
        page.wait_for_selector("#learning .drawing[data-of=epochs]:visible")
        assert visible(page, "learning") == ["epochs"]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
