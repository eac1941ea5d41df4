"""Faults of training, each by itself, which takes minutes: F01 with other processes, F02."""

import killed_runs
import killed_saves
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["workers", "torchrun", "processes"])
def killed_once(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    return root, killed_runs.killed(root, request.param, list(killed_runs.POINTS))


@pytest.mark.parametrize("point", killed_runs.POINTS)
def test_F01_run_killed_anywhere_ends_with_the_same_bits(killed_once, point):
    root, ends = killed_once
    life = list(killed_runs.POINTS).index(point)
    killed_runs.assert_as_if_never_killed(root, life, ends[str(life)], kills=1)


def test_F01_run_of_two_processes_killed_everywhere_in_turn_ends_with_the_same_bits(tmp_path):
    ends = killed_runs.killed(tmp_path, "processes", [",".join(killed_runs.POINTS)])
    killed_runs.assert_as_if_never_killed(tmp_path, 0, ends["0"], kills=len(killed_runs.POINTS))


def test_F02_none_of_200_kills_leaves_an_unreadable_checkpoint(tmp_path):
    found = killed_saves.after_kills(tmp_path / "checkpoints", num=200, seed=0)
    assert found.pop("kills that left something") > 20
    assert found == {"newest": 200, "before it": 0, "unreadable": 0, "left at last": 0}
