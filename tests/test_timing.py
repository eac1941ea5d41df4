"""How candidates take turns, and how a disturbed sample is treated; on clocks that are made up."""

import pytest

from normlab.lab.bench.results import ratios
from normlab.lab.bench.timing import TRIES, Timer, alternate, waiting_seconds


def scripted(samples: list[tuple[float, float]]) -> Timer:
    """A timer of given (seconds, seconds waited for a core) in the order they are taken."""
    waited, following = 0.0, iter(samples)

    def lasts(call: object, repeats: int) -> float:
        nonlocal waited
        seconds, more = next(following)
        waited += more
        return seconds

    return Timer(lasts, lambda: waited)


def test_disturbed_sample_is_taken_again():
    timer = scripted([(5.0, 1.0), (4.0, 0.5), (3.0, 0.0)])
    assert timer.seconds(list) == 3.0
    assert timer.num_disturbed == 0


def test_short_wait_is_let_through():
    assert scripted([(5.0, 0.05)]).seconds(list) == 5.0


def test_tries_are_bounded_and_the_least_disturbed_sample_is_kept():
    waits = [0.5, 0.4, 0.2, 0.3, 0.6]
    timer = scripted([(1.0 + i, wait * (1.0 + i)) for i, wait in enumerate(waits)])
    assert len(waits) == TRIES
    assert timer.seconds(list) == 3.0
    assert timer.num_disturbed == 1


def test_no_sample_is_rejected_where_the_system_does_not_tell():
    samples = iter([2.0])
    timer = Timer(lambda call, repeats: next(samples), lambda: None)
    assert timer.seconds(list) == 2.0
    assert timer.num_disturbed is None


def test_waiting_is_that_of_all_threads(tmp_path):
    for thread, nanoseconds in (("1", 2_000_000_000), ("2", 500_000_000)):
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "schedstat").write_text(f"123 {nanoseconds} 4\n")
    (tmp_path / "ended").mkdir()
    assert waiting_seconds(tmp_path) == 2.5
    assert waiting_seconds(tmp_path / "nowhere") is None


def test_ratios_are_taken_within_a_round():
    slowness = {"now": 1.0}
    timer = Timer(lambda call, repeats: call() * slowness["now"], lambda: 0.0)
    seconds = alternate(
        {"a": lambda: 2.0, "b": lambda: 1.0},
        4,
        timer=timer,
        progress=lambda done, rounds: slowness.update(now=10.0**done),
    )
    assert seconds["a"] == [2.0, 20.0, 200.0, 2000.0]
    assert ratios(seconds["a"], seconds["b"]) == (2.0, 2.0, 2.0)


def test_one_round_has_a_ratio():
    assert ratios([3.0], [2.0]) == (1.5, 1.5, 1.5)


def test_candidates_take_turns_in_changing_order():
    called: list[str] = []
    candidates = {name: lambda name=name: called.append(name) for name in "abc"}
    rounds: list[tuple[str, ...]] = []

    def end_of_round(done: int, rounds_in_all: int) -> None:
        rounds.append(tuple(called[-3:]))

    def lasts(call: object, repeats: int) -> float:
        call()
        return 1.0

    alternate(candidates, 6, timer=Timer(lasts, lambda: 0.0), progress=end_of_round)
    assert {frozenset(order) for order in rounds} == {frozenset("abc")}
    assert len(set(rounds)) > 2


def test_short_call_is_repeated_within_a_sample():
    asked: list[int] = []

    def lasts(call: object, repeats: int) -> float:
        asked.append(repeats)
        return 1e-5 * repeats

    seconds = alternate({"a": list}, 1, timer=Timer(lasts, lambda: 0.0, min_seconds=1e-3))
    assert asked[-1] == 100
    assert seconds["a"] == [pytest.approx(1e-5)]
