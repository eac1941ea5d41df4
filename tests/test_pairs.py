"""Every norm against every other: p-values, their correction, and what is said of them."""

import pytest
from fake_runs import FakeRun, thirty_runs

from normlab.lab.analysis import Analysis, analyse
from normlab.lab.differences import holm, paired, two_sided
from normlab.lab.experiment import Experiment
from normlab.lab.report import pairs, sentences

NOISE = (0.0, 0.3, -0.2, 0.1)


def runs(shifts: dict[str, float], sizes: tuple[int, ...] = (2,), seeds: int = 4) -> Analysis:
    """Errors 20 + shift, with what a seed does to each norm in another order."""
    found = []
    for k, (norm, shift) in enumerate(shifts.items()):
        for size in sizes:
            for s in range(seeds):
                error = 20 + shift + 3 * s + NOISE[(s + k) % 4]
                found.append(FakeRun(Experiment(norm=norm, batch_size=size, seed=s), [error]))
    return analyse(found)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30, 101])
def test_two_sided_p_equals_scipy(freedom: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    for t in (0.0, 0.1, -1.0, 2.0, 5.0, -40.0):
        # 1 - (about 1) leaves an absolute error of some roundings of 1, one for each term
        expected = 2 * stats.t.sf(abs(t), freedom)
        assert two_sided(t, freedom) == pytest.approx(expected, abs=freedom * 2e-16, rel=1e-12)


def test_paired_p_equals_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = [11.0, 22.0, 33.5, 7.0], [10.0, 20.5, 30.0, 8.0]
    ours = paired(dict(enumerate(a)), dict(enumerate(b)))
    assert ours is not None
    assert ours.p == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-12)


@pytest.mark.parametrize(
    ("ps", "adjusted"),
    [
        pytest.param([], [], id="none"),
        pytest.param([0.04], [0.04], id="one stays"),
        pytest.param([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02], id="never below a rank"),
        pytest.param([0.9, 0.8], [1.0, 1.0], id="at most 1"),
    ],
)
def test_holm_of_hand_computed_p_values(ps: list[float], adjusted: list[float]) -> None:
    assert holm(ps) == pytest.approx(adjusted)


def test_every_pair_stands_once_at_each_size() -> None:
    a = runs({"batch": 0, "group": 1, "layer": 2}, (2, 8))
    found = [(p.x, p.series.label, p.other.label) for p in pairs.pairs(a)]
    three = [("batch", "group"), ("batch", "layer"), ("group", "layer")]
    assert found == [(x, *pair) for x in (2, 8) for pair in three]
    assert len(pairs.table(a).rows) == 6


def test_norms_that_do_not_depend_on_the_size_are_compared_once() -> None:
    found = [(p.x, p.series.label, p.other.label) for p in pairs.pairs(analyse(thirty_runs()))]
    assert found.count((None, "group", "layer")) == 1
    assert not [x for x, *names in found if x is not None and "batch" not in names]


def test_a_finding_among_many_pairs_needs_more_than_its_interval() -> None:
    two = runs({"batch": 0, "group": 0.8})
    ((pair, alone),) = [(p, p.significant) for p in pairs.pairs(two)]
    assert alone
    assert pair.difference.significant
    six = runs({"batch": 0, "group": 0.8, "layer": 0.2, "instance": 0.3})
    same = next(p for p in pairs.pairs(six) if (p.series.norm, p.other.norm) == ("batch", "group"))
    assert same.difference == pair.difference
    assert same.p is not None
    assert same.difference.p is not None
    assert 0.05 < same.p <= 6 * same.difference.p
    assert same.verdict == "not significant"


def test_sentence_names_the_better_norm_first() -> None:
    (said,) = pairs.sentences(runs({"batch": 5.0, "group": 0}))
    assert "1 of 1 pair differs significantly (4 seeds each): group is 5." in said
    assert "points better than batch (p < 0.001)." in said


def test_no_significant_difference_is_said() -> None:
    (said,) = pairs.sentences(runs({"batch": 0, "group": 0, "layer": 0}))
    assert said == (
        "At a batch size of 2, no significant difference between any two of batch, group and "
        "layer (3 pairs, 4 seeds each)."
    )


def test_one_seed_is_no_section() -> None:
    assert pairs.section(runs({"batch": 0, "group": 9}, seeds=1), []) is None


def test_pairs_are_of_one_setting() -> None:
    """The lowest error of all data sets says nothing of norms."""
    errors = {("digits", "group"): 9.0, ("digits", "batch"): 20.0,
              ("mnist", "group"): 2.0, ("mnist", "batch"): 1.9}  # fmt: skip
    found = analyse(
        [
            FakeRun(Experiment(norm=norm, data=data, seed=s), [e + s * (1 + (norm == "group"))])
            for (data, norm), e in errors.items()
            for s in (0, 1, 2)
        ]
    )
    assert len(pairs.pairs(found)) == 2
    (said,) = pairs.sentences(found)
    assert "1 of 2 pairs differs significantly (3 seeds each): group · data digits" in said
    first, *others = sentences.headline(found)
    assert "group · data digits is 10.0 ± " in first
    assert others == [
        "At 32, in 1 other setting group is significantly better in none and worse in none."
    ]


def test_no_difference_in_any_setting_is_said_of_settings() -> None:
    found = [
        FakeRun(Experiment(norm=n, seed=s, learning_rate=rate), [9.0 + s * (1 + (n == "group"))])
        for n in ("batch", "group")
        for s in (0, 1)
        for rate in (0.1, 0.2)
    ]
    (said,) = pairs.sentences(analyse(found))
    assert "no significant difference within any setting (2 pairs, 2 seeds each)" in said
