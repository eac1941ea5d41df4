"""Results of runs, groups over seeds and intervals, against numbers worked out by hand."""

import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from normlab.lab.analysis import analyse, quantile, read, telling, welch
from normlab.lab.differences import half_width, paired
from normlab.lab.experiment import Experiment
from normlab.lab.report import divisions, sentences, tables


@dataclass
class FakeRun:
    experiment: Experiment
    errors: list[Any] = field(default_factory=lambda: [50.0, 10.0, 10.0, 10.0])
    status: dict[str, Any] = field(default_factory=lambda: {"state": "finished"})
    train_error: float = 5.0

    @property
    def path(self) -> Path:
        return Path("runs") / self.experiment.name

    def events(self) -> list[dict[str, Any]]:
        epochs = [
            {
                "event": "epoch",
                "epoch": i,
                "step": 125 * i,
                "samples": 4000 * i,
                "train_error": self.train_error,
                "validation_error": error,
                "seconds_train": 2.0,
            }
            for i, error in enumerate(self.errors, 1)
        ]
        return [{"event": "start", "num_parameters": 7, "bytes_saved": 64_000}, *epochs]


def runs_of(errors: list[float], **fields: Any) -> list[FakeRun]:
    return [FakeRun(Experiment(seed=s, **fields), [e]) for s, e in enumerate(errors)]


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        pytest.param([90.0, 1.0, 12.0, 8.0, 11.0], 11.0, id="last three of five"),
        pytest.param([90.0, 12.0], 51.0, id="fewer than three epochs"),
        pytest.param([], None, id="122: no epoch"),
        pytest.param([9.0, 9.0, None], None, id="123: null at the end"),
        pytest.param([9.0, math.nan, 9.0], None, id="123: NaN"),
        pytest.param([9.0, math.inf, 9.0], None, id="123: infinity"),
        pytest.param([9.0, "9", True], None, id="text and a boolean are no numbers"),
        pytest.param([None, 8.0, 8.0, 7.0], 8.0, id="null long before the end"),
    ],
)
def test_result_is_the_median_of_the_last_epochs(errors: list[Any], expected: float | None) -> None:
    assert read(FakeRun(Experiment(), errors)).error == expected


def test_cost_is_per_image() -> None:
    result = read(FakeRun(Experiment(batch_size=32)))
    assert result.seconds == pytest.approx(0.5)  # 2 s for each 4,000 images
    assert result.bytes_saved == 2000


def test_a_run_that_starts_late_is_not_the_time_of_an_epoch() -> None:
    assert read(FakeRun(Experiment(), [])).seconds is None


def test_welch_interval_of_hand_computed_samples() -> None:
    # a: mean 12, variance 4; b: mean 21, variance 1; each n = 3.
    # se² = 4/3 + 1/3 = 5/3; df = (5/3)² / ((4/3)²/2 + (1/3)²/2) = 50/17 = 2.94, so t(2) = 4.303.
    difference = welch([10.0, 12.0, 14.0], [20.0, 21.0, 22.0])
    assert difference is not None
    assert difference.value == -9
    assert difference.half == pytest.approx(4.303 * math.sqrt(5 / 3))
    assert difference.effect == pytest.approx(-9 / math.sqrt(2.5))
    assert difference.significant


@pytest.mark.parametrize("freedom", [*range(1, 31), 2.94, 31, 50, 75, 500, 10_000])
def test_quantile_is_student_s_and_never_too_small(freedom: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    exact = stats.t.ppf(0.975, freedom)
    table = quantile(freedom)
    # Rounding down the degrees of freedom costs width; only the table's rounding may cost safety.
    assert table > exact - 5e-4
    if isinstance(freedom, int) and freedom <= 31:
        assert table == pytest.approx(exact, abs=3e-3)


def test_welch_is_no_narrower_than_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = [25.1, 18.0, 36.2, 22.9, 30.3], [10.2, 9.7, 10.9]
    exact = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    ours = welch(a, b)
    assert ours is not None
    assert ours.half is not None
    half = (exact.high - exact.low) / 2
    assert half - 0.01 <= ours.half <= 1.15 * half


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        pytest.param([10.0], [12.0, 14.0], "so no interval", id="one seed"),
        pytest.param([9.0], [9.0], "group is within 0.1 points of batch", id="the same error"),
        pytest.param([10.0, 10.0], [12.0, 12.0], "no spread over seeds", id="equal seeds"),
        pytest.param(
            [10.0, 10.4], [25.1, 24.9], "14.8 ± 2.8 points better", id="better: t(1) 12.706 × √0.05"
        ),
        pytest.param([25.1, 24.9], [10.0, 10.4], "14.8 ± 2.8 points worse", id="worse"),
        pytest.param([10.0, 12.0, 14.0], [11.0, 12.0], "no significant difference", id="equal"),
        pytest.param([10.0, 12.0, 14.0], [11.0, 12.0], "3 and 2 seeds", id="other number"),
    ],
)
def test_sentence_says_what_the_numbers_allow(
    a: list[float], b: list[float], expected: str
) -> None:
    difference = welch(a, b)
    assert difference is not None
    text = sentences.sentence("group", "batch", 2, difference)
    assert expected in text
    assert " at 2 (" in text


def test_nothing_to_compare_is_no_difference() -> None:
    assert welch([], [1.0]) is None


def test_group_has_mean_and_sample_deviation_over_seeds() -> None:
    group = analyse(runs_of([10.0, 12.0, 17.0])).series[0].at(32)
    assert (group.mean, group.std) == (13, pytest.approx(math.sqrt(13)))


def test_lost_runs_are_counted_and_not_in_the_mean() -> None:
    runs = runs_of([10.0, 12.0, 99.0, 99.0])
    runs[2].status, runs[3].status = {"state": "diverged"}, {"state": "running"}
    group = analyse(runs).series[0].at(32)
    assert group.mean == 11
    assert sentences.lost_runs(group) == "1 diverged, 1 running"


def test_norms_without_a_batch_are_flat_where_others_sweep_it() -> None:
    runs = runs_of([10.0, 11.0], norm="group")
    for size in (2, 8):
        runs += runs_of([20.0 / size, 21.0 / size], norm="batch", norm_batch_size=size)
    runs += runs_of([1.0, 2.0], norm="batch")  # the whole batch of 32
    a = analyse(runs)
    assert (a.x_field, a.xs) == ("norm_batch_size", (2, 8, 32))
    assert [(s.label, s.flat) for s in a.series] == [("batch", False), ("group", True)]
    assert a.series[1].at(2).mean == a.series[1].at(32).mean == 10.5


def test_axis_is_the_batch_size_otherwise() -> None:
    runs = [r for b in (2, 32) for n in ("bn", "gn") for r in runs_of([9.0], norm=n, batch_size=b)]
    a = analyse(runs)
    assert (a.x_field, a.xs, [s.label for s in a.series]) == ("batch_size", (2, 32), ["bn", "gn"])
    assert len(a.differences()) == 2, "bn is batch norm too"


def test_another_field_splits_series_and_compares_like_with_like() -> None:
    runs = []
    for rate, shift in ((0.1, 0.0), (0.2, 5.0)):
        runs += runs_of([20 + shift, 21 + shift], norm="batch", learning_rate=rate)
        runs += runs_of([10 + shift, 11 + shift], norm="group", learning_rate=rate)
    a = analyse(runs)
    labels = [s.label for s in a.series]
    assert labels[0] == "batch · learning_rate 0.1"
    assert [d.value for *_, d in a.differences()] == [-10, -10]


def test_field_that_follows_the_norm_is_named_as_a_caveat() -> None:
    a = analyse(
        [
            *runs_of([20.0], norm="batch", learning_rate=0.1),
            *runs_of([9.0], norm="group", learning_rate=0.2),
        ]
    )
    assert a.companions == ("learning_rate",)
    assert "also differ in learning_rate" in sentences.caveats(a)[0]


def test_the_same_run_found_twice_counts_once() -> None:
    a = analyse([*runs_of([10.0, 12.0]), *runs_of([10.0])])
    assert a.series[0].at(32).errors == (10, 12)
    assert "1 run left out" in sentences.caveats(a)[0]


def test_unreadable_run_is_listed_and_the_others_stay() -> None:
    class Broken(FakeRun):
        def events(self) -> list[dict[str, Any]]:
            raise ValueError("metrics.jsonl:3: damaged, not JSON")

    good = runs_of([float(e) for e in range(99)])
    a = analyse([*good, Broken(Experiment(seed=99))], [(Path("runs/x"), "no experiment.json")])
    assert len(a.results) == 99
    assert [reason for _, reason in a.damaged] == [
        "no experiment.json",
        "metrics.jsonl:3: damaged, not JSON",
    ]


def _batch_norm(few: list[float], many: list[float], train: tuple[float, float]) -> str:
    runs = runs_of(few, norm="batch", batch_size=2) + runs_of(many, norm="batch", batch_size=32)
    for run in runs:
        run.train_error = train[run.experiment.batch_size == 32]
    return " ".join(sentences.about_batch_norm(analyse(runs)))


@pytest.mark.parametrize(
    ("few", "train", "expected"),
    [
        pytest.param([25, 26, 27], (5, 4), "points to the running statistics", id="mismatch"),
        pytest.param([25, 26, 27], (19, 4), "training itself is worse", id="training"),
        pytest.param([9, 10, 11.5], (5, 4), "does not measurably suffer", id="no loss"),
        pytest.param([15, 24, 37], (5, 4), "cannot be told from these seeds", id="wide"),
        pytest.param([2, 2.1, 2.2], (5, 4), "it helps", id="gain"),
        pytest.param([25], (5, 4), "nothing is certain", id="one seed"),
    ],
)
def test_cause_of_batch_norms_loss(few: list[float], train: tuple, expected: str) -> None:
    assert expected in _batch_norm([float(e) for e in few], [9.0, 10.0, 11.0], train)


def test_ruled_out_loss_is_the_upper_end_of_the_interval() -> None:
    few, many = [9.0, 10.0, 12.0], [9.0, 10.0, 11.0]
    difference = welch(few, many)
    assert difference is not None
    assert difference.half is not None
    most = statistics.fmean(few) - statistics.fmean(many) + difference.half
    assert f"rules out a loss above {most:.1f} points" in _batch_norm(few, many, (5, 4))


def test_batch_size_where_batch_norm_always_diverged_is_named() -> None:
    runs = runs_of([90.0, 90.0], norm="batch", batch_size=2) + runs_of([9.0], norm="batch")
    for run in runs[:2]:
        run.status = {"state": "diverged"}
    assert sentences.about_batch_norm(analyse(runs)) == [
        "Batch norm has no result at 2: 2 diverged."
    ]


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        pytest.param([], "No run has finished", id="122: no run"),
        pytest.param(runs_of([9.0]), "9.0 % (1 seed)", id="one run"),
        pytest.param(
            runs_of([9.0, 9.2], norm="layer") + runs_of([8.0, 8.2], norm="group"),
            "lowest mean validation error is that of group",
            id="no batch norm",
        ),
        pytest.param(
            runs_of([9.0, 9.2], norm="group") + runs_of([20.0, 20.2], norm="batch"),
            "At a batch size of 32, group is 11.0 ± 0.6 points better than batch (2 seeds each)",
            id="group against batch",
        ),
    ],
)
def test_headline_is_computed(runs: list[FakeRun], expected: str) -> None:
    assert expected in sentences.headline(analyse(runs))[0]


def test_paired_interval_of_hand_computed_samples() -> None:
    # Differences 1, 2, 3: mean 2, standard deviation 1, n = 3, so t(2) = 4.303.
    difference = paired({0: 11.0, 1: 22.0, 2: 33.0, 7: 0.0}, {0: 10.0, 1: 20.0, 2: 30.0, 8: 0.0})
    assert difference is not None
    assert difference.value == 2
    assert difference.half == pytest.approx(4.303 / math.sqrt(3))
    assert difference.effect == pytest.approx(2)
    assert difference.num_seeds == (3, 3)


def test_paired_equals_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = [25.1, 18.0, 36.2, 22.9], [20.2, 17.7, 30.9, 23.1]
    exact = stats.ttest_rel(a, b).confidence_interval(0.95)
    ours = paired(dict(enumerate(a)), dict(enumerate(b)))
    assert ours is not None
    assert ours.half == pytest.approx((exact.high - exact.low) / 2, abs=2e-3)


@pytest.mark.parametrize(
    ("a", "b", "half"),
    [
        pytest.param({0: 1.0}, {1: 2.0}, "none", id="no common seed"),
        pytest.param({0: 1.0}, {0: 2.0}, None, id="one common seed"),
        pytest.param({0: 1.0, 1: 2.0}, {0: 2.0, 1: 3.0}, None, id="no spread"),
    ],
)
def test_paired_has_no_interval_without_spread(a: dict, b: dict, half: Any) -> None:
    difference = paired(a, b)
    assert (difference is None) if half == "none" else (difference.half is None)


def test_pairing_finds_what_the_spread_over_seeds_hides() -> None:
    noise = [0.0, 10.0, 20.0]
    runs = runs_of([30 + n for n in noise], norm="batch")
    runs += runs_of([29 + n + 0.1 * i for i, n in enumerate(noise)], norm="group")
    a = analyse(runs)
    ((*_, welch_s),), ((*_, pairs),) = a.differences(), a.paired()
    assert welch_s.value == pytest.approx(pairs.value)
    assert not welch_s.significant
    assert pairs.significant
    assert tables.paired(a).rows == (("group", "32", "3", "−0.9", "−1.1 to −0.7", "better"),)


def test_half_width_is_that_of_a_mean() -> None:
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.303 / math.sqrt(3))
    assert half_width([1.0]) is None


@pytest.mark.parametrize(("last", "error"), [(1, 7.0), (3, 8.0), (5, 9.0), (99, 9.0)])
def test_number_of_last_epochs_can_be_chosen(last: int, error: float) -> None:
    a = analyse([FakeRun(Experiment(), [50.0, 20.0, 9.0, 8.0, 7.0])], last=last)
    assert (a.series[0].at(32).mean, a.last) == (error, last)


def test_table_of_last_epochs_shows_what_the_choice_does() -> None:
    a = analyse([FakeRun(Experiment(), [50.0, 6.0, 9.0, 8.0, 7.0])])
    table = tables.last_epochs(a)
    assert table.columns == ("norm", "batch size", "last 1", "last 3", "best epoch")
    assert table.rows == (("group", "32", "7.00", "8.00", "6.00"),)


def test_epochs_know_samples_steps_and_seconds() -> None:
    (epoch,) = read(FakeRun(Experiment(), [9.0])).epochs
    assert (epoch.epoch, epoch.step, epoch.samples, epoch.seconds) == (1, 125, 4000, 2.0)


def test_seconds_of_a_step_are_in_the_costs() -> None:
    a = analyse([FakeRun(Experiment())])
    table = tables.cost(a)
    (row,) = table.rows
    assert dict(zip(table.columns, row))["ms/step"] == "16.0"  # 2 s for 125 steps


def test_as_few_fields_as_possible_name_a_series() -> None:
    fields = {"mnist": (28, 3), "svhn": (32, 5)}
    runs = [
        r
        for data, (size, epochs) in fields.items()
        for n in ("batch", "group")
        for r in runs_of([9.0], data=data, image_size=size, epochs=epochs, norm=n)
    ]
    a = analyse(runs)
    labels = {s.label for s in a.series}
    assert labels == {f"{n} · data {d}" for n in ("batch", "group") for d in fields}
    assert a.companions == ()


def test_every_needed_field_names_a_series() -> None:
    grid = [Experiment(data=d, epochs=e) for d in ("mnist", "svhn") for e in (3, 5)]
    assert telling(grid, ("epochs", "data", "image_size")) == ["data", "epochs"]


def test_a_probe_makes_no_other_setting() -> None:
    runs = runs_of([10.0, 11.0], norm="group") + runs_of([10.0], norm="group", probe="features")
    a = analyse(runs)
    assert [s.label for s in a.series] == ["group"]
    assert len(a.repeated) == 1


def test_divisions_end_in_layer_and_instance_norm() -> None:
    norms = ("instance", "group:size=2", "group:8", "group", "layer", "group:2", "group:size=8")
    a = analyse([r for n in norms for r in runs_of([9.0, 11.0], norm=n)])
    by_groups, by_size = divisions.by_groups(a), divisions.by_size(a)
    assert [row[:2] for row in by_groups.rows] == [
        ("8", "group:8"),
        ("2", "group:2"),
        ("1 (layer norm)", "layer"),
    ]
    assert [row[0] for row in by_size.rows] == ["16", "8", "2", "1 (instance norm)"]
    assert by_size.rows[0][2] == "10.0 ± 1.4"


def test_one_division_is_no_table() -> None:
    assert divisions.section(analyse(runs_of([9.0], norm="layer")), []) is None


def test_normalization_batch_stands_against_sgd_batch() -> None:
    runs = [
        r
        for size, parts in ((8, (2, 4, None)), (32, (2, 4)))
        for part in parts
        for r in runs_of([float(size + (part or 8))], norm="batch", batch_size=size,
                         norm_batch_size=part)
    ]  # fmt: skip
    (table,) = divisions.matrices(analyse([*runs, *runs_of([9.0], norm="group")]))
    assert table.columns == ("normalization batch", "SGD batch 8", "SGD batch 32")
    assert table.rows == (("2", "10.0", "34.0"), ("4", "12.0", "36.0"), ("8", "16.0", ""))
