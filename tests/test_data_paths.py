"""Many paths in little memory, and none that leads out of its folder."""

import os
import sys

import pytest

from normlab.lab.data import paths
from normlab.lab.data.dataset import DataError
from normlab.lab.data.paths import Paths, check_inside, checked, shown

NAMES = ["cat/1.png", "k\xe4tzchen/\U0001f408.jpg", os.fsdecode(b"\xff\xfe.gif"), "x" * 255]


def test_paths_come_back_as_they_were():
    found = Paths("top", NAMES)
    assert len(found) == 4
    assert list(found) == [f"top/{name}" for name in NAMES]
    assert found[2] == f"top/{NAMES[2]}"
    with pytest.raises(IndexError):
        found[4]


def test_joined_paths_are_all_in_order():
    parts = [Paths("top", part) for part in (NAMES[:1], [], NAMES[1:])]
    assert list(Paths.joined("top", parts)) == list(Paths("top", NAMES))
    assert list(Paths.joined("top", [])) == []


def test_paths_are_few_objects_whatever_their_number():
    """Processes forked from this one copy what has a reference count, so there must be few."""
    many = Paths("top", (f"n{k % 1000:08d}/{k:08d}.JPEG" for k in range(20_000)))
    assert sum(map(sys.getsizeof, vars(many).values())) < 20_000 * 33 + 1000
    assert len(vars(many)) == 3


@pytest.mark.parametrize("path", ["a/b.png", "..a/b..png", "a b", "ab:c", "~/x"])
def test_path_that_leads_down_is_taken(path):
    assert checked(path, "list:1") == path


@pytest.mark.parametrize(
    "path", ["", "/a", "..", "../a", "a/../b", "a/..", "C:a", "C:/a", "a\\b", "\\\\host\\a"]
)
def test_S06_path_that_may_lead_out_is_refused_with_its_line(path):
    with pytest.raises(DataError, match="list:7: path .* leads out of the folder"):
        checked(path, "list:7")


def test_S06_folder_that_is_a_link_is_taken_if_it_stays_inside(tmp_path):
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "x.png").touch()
    (tmp_path / "set" / "b").symlink_to(tmp_path / "set" / "a")
    check_inside(Paths(tmp_path / "set", ["a/x.png", "b/x.png"]), tmp_path / "set")
    (tmp_path / "set" / "c").symlink_to(tmp_path)
    with pytest.raises(DataError, match="set/c is a link out of .*set; replace it"):
        check_inside(Paths(tmp_path / "set", ["c/x.png"]), tmp_path / "set")


def test_S06_folder_whose_name_only_begins_alike_is_outside(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "settled").mkdir()
    (tmp_path / "set" / "a").symlink_to(tmp_path / "settled")
    with pytest.raises(DataError, match="set/a is a link out of"):
        check_inside(Paths(tmp_path / "set", ["a/x.png"]), tmp_path / "set")


def test_absent_files_are_looked_for_where_they_are_few(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="x.png does not exist; 2 of 2 images listed are not below"):
        check_inside(Paths(tmp_path, ["x.png", "y.png"]), tmp_path)
    monkeypatch.setattr(paths, "MANY", 1)
    check_inside(Paths(tmp_path, ["x.png", "y.png"]), tmp_path)


def test_S12_control_characters_are_shown_escaped():
    assert shown("a\x1b[31m\nb\u202e.png") == r"a\x1b[31m\nb\u202e.png"
