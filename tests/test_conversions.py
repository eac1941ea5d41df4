"""What converted networks lose and regain, against numbers worked out by hand."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from normlab.lab.analysis import Analysis, analyse
from normlab.lab.conversions import networks
from normlab.lab.experiment import Experiment
from normlab.lab.report import comparison, conversion, sections, sentences

SOURCE = Experiment(norm="batch", data="mnist")


@dataclass
class FakeRun:
    experiment: Experiment
    error: float
    before: float | None = None
    state: str = "finished"

    @property
    def path(self) -> Path:
        return Path("runs") / self.experiment.name

    @property
    def status(self) -> dict[str, Any]:
        return {"state": self.state}

    def events(self) -> list[dict[str, Any]]:
        start = {"event": "start"} | ({} if self.before is None else
                                      {"validation_error": self.before})  # fmt: skip
        return [start, {"event": "epoch", "samples": 64, "validation_error": self.error}]


def source(seed: int, **fields: Any) -> Experiment:
    return SOURCE.replace(seed=seed, **fields)


def converted(
    norm: str, seed: int, before: float, error: float, size: int = 2, **fields: Any
) -> FakeRun:
    started = source(seed)
    return FakeRun(
        started.replace(norm=norm, batch_size=size, source=f"runs/{started.name}", **fields),
        error,
        before,
    )


def three_seeds(with_sources: bool = True) -> Analysis:
    found = []
    for seed in range(3):
        if with_sources:
            found.append(FakeRun(source(seed), 10.0 + seed))
        for size in (1, 8):
            found += [
                converted("group", seed, 80.0 + seed, 30.0 + 2 * seed, size, keep="fresh"),
                converted("group", seed, 12.0 + 2 * seed, 13.0 + 2 * seed, size),
                converted("batch", seed, 10.0 + seed, 20.0 / size + seed, size),
            ]
    return analyse(found)


def test_ways_are_ordered_and_the_source_s_norm_is_the_control() -> None:
    (network,) = networks(three_seeds())
    assert [w.label for w in network.ways] == ["group · fresh", "group · function", "batch"]
    assert network.control is not None
    assert network.control.label == "batch"
    assert network.batch_sizes == (1, 8)


def test_loss_is_the_paired_difference_to_the_error_before() -> None:
    # 12, 14, 16 right after conversion against 10, 11, 12: 2, 3, 4, so t(2) · 1/√3 = 2.484.
    (network,) = networks(three_seeds())
    function = network.ways[1]
    difference = network.loss(function)
    assert difference is not None
    assert (difference.value, difference.half) == (3, pytest.approx(4.303 / 3**0.5))


def test_table_has_the_error_right_after_and_after_training_on() -> None:
    (network,) = networks(three_seeds())
    table = conversion.errors(network)
    assert table.columns == ("way", "right after", "trained on at 1", "trained on at 8")
    assert table.rows[0][:2] == ("source, before conversion", "11.0 ± 1.0")
    assert table.rows[2] == ("group · function", "14.0 ± 2.0", "15.0 ± 2.0", "15.0 ± 2.0")


def test_sentences_say_where_the_source_s_norm_wins() -> None:
    said = " ".join(sentences.headline(three_seeds()))
    assert "+70.0 with group · fresh; +3.0 with group · function" in said
    longer = " ".join(conversion.section(three_seeds(), []).more)  # type: ignore[union-attr]
    assert "at a batch of 1, group · function has the lowest mean of the converted, 15.0" in longer
    assert "better than batch as it was, 21.0 ± 1.0 % (−6.0 ± 2.5 points, 3 seeds each)" in longer
    assert "worse than batch as it was, 3.5 ± 1.0 % (+11.5 ± 2.5 points, 3 seeds each)" in longer


def test_without_the_source_s_run_the_ways_are_still_compared() -> None:
    (network,) = networks(three_seeds(with_sources=False))
    assert network.source == {}
    assert network.control is None
    assert [w.label for w in network.ways][:2] == ["group · fresh", "batch · function"]
    assert conversion.errors(network).rows[0][0] == "group · fresh"


def test_converted_runs_are_in_no_series() -> None:
    a = three_seeds()
    assert [s.label for s in a.series] == ["batch"]
    assert a.series[0].at(32).errors == (10, 11, 12)
    assert len(a.conversions) == 18


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({"keep": "affine"}, "group · affine"),
        ({"strength": 1.0}, "group · strength 1"),
        ({"strength": 0.5, "final_strength": 0.0}, "group · strength 0.5 → 0"),
        ({"strength": 0.5, "final_strength": 0.5}, "group · strength 0.5"),
    ],
)
def test_ways_have_names(fields: dict[str, Any], label: str) -> None:
    (network,) = networks(analyse([converted("group", 0, 9.0, 9.0, **fields)]))
    assert [w.label for w in network.ways] == [label]


def test_networks_are_told_apart_by_what_differs() -> None:
    other = source(0, data="svhn", epochs=99)
    found = [
        converted("group", 0, 9.0, 9.0),
        FakeRun(other.replace(norm="group", source=f"runs/{other.name}"), 9.0, 9.0),
    ]
    assert [n.label for n in networks(analyse(found))] == ["mnist", "svhn"]


def test_lost_conversions_are_counted() -> None:
    lost = converted("group", 1, 12.0, 99.0)
    lost.state = "diverged"
    (network,) = networks(analyse([converted("group", 0, 12.0, 9.0), lost]))
    assert conversion.errors(network).rows[0][2] == "9.0; 1 diverged"


def test_page_of_conversions_begins_with_them() -> None:
    a = three_seeds()
    assert a.is_about_conversions
    figure = comparison.headline_figure(a)
    assert figure is not None
    assert figure.title == "Error after conversion and training on"
    assert sentences.headline(a)[0].startswith("Right after conversion, ")
    first, *_ = sections.sections(a, [], {})
    assert (first.id, first.figures) == ("conversion", [])


def test_page_with_some_conversions_begins_with_its_other_runs() -> None:
    others = [FakeRun(source(s, norm=norm), 9.0) for s in (0, 1) for norm in ("batch", "group")]
    a = analyse([*others, converted("group", 0, 12.0, 9.0)])
    assert not a.is_about_conversions
    figure = comparison.headline_figure(a)
    assert figure is not None
    assert figure.note.startswith("Validation error of 4 runs.")
    (section,) = [s for s in sections.sections(a, [], {}) if s.id == "conversion"]
    assert len(section.figures) == 1


def test_no_conversions_are_no_section() -> None:
    assert conversion.section(analyse([FakeRun(SOURCE, 9.0)]), []) is None


def test_figure_shows_every_run_once() -> None:
    found = networks(three_seeds())
    figure = conversion.trained_on(found)
    assert figure is not None
    ((_, svg),) = figure.panels
    assert svg.count("<circle") == len(figure.table.rows) == 18
    assert "group · fresh, " in svg
