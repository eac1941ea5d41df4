"""Tables of images: columns, labels, splits, and what is said about bad ones."""

import contextlib
import csv as stdlib_csv
import os
import tempfile
from pathlib import Path

import pytest
import torch
from files import snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from normlab.lab import data
from normlab.lab.data import csv, listed
from normlab.lab.data.dataset import DataError

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def pictures(tmp_path):
    """cat/0.png … dog/3.png, each of its own grey, in a folder of their own."""
    top = tmp_path / "set"
    for k in range(4):
        path = top / ("cat" if k < 2 else "dog") / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (k, k, k)).save(path)
    return top


def _table(top, text, encoding="utf-8"):
    file = top / "list.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return file


ROWS = "cat/0.png,cat\ncat/1.png,cat\ndog/2.png,dog\ndog/3.png,dog\n"


def _greys(dataset):
    return dataset.images[torch.arange(len(dataset))][:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("path,label\n" + ROWS, id="plain"),
        pytest.param("\ufeffpath,label\n" + ROWS, id="104: byte order mark"),
        pytest.param(("path,label\n" + ROWS).replace("\n", "\r\n"), id="104: CRLF"),
        pytest.param("path,label\n" + ROWS.replace("\n", "\n\n"), id="empty lines"),
        pytest.param("path, label\n" + ROWS.rstrip(), id="space in header, no last newline"),
        pytest.param("path,label\n" + ROWS.replace("cat/0.png", '"cat/0.png"'), id="quotes"),
    ],
)
def test_table_names_images_and_their_classes(pictures, text):
    dataset = csv.load(str(_table(pictures, text)), "train")
    assert dataset.classes == ("cat", "dog")
    assert dataset.labels.tolist() == [0, 0, 1, 1]
    assert _greys(dataset) == [0, 1, 2, 3]


def test_columns_may_be_in_any_order_and_more(pictures):
    text = 'label,note,path\ndog,=1+1,dog/2.png\ncat,"a, b",cat/0.png\n'
    dataset = csv.load(str(_table(pictures, text)), "train")
    assert (dataset.labels.tolist(), _greys(dataset)) == ([1, 0], [2, 0])


def test_splits_share_the_classes_of_train(pictures):
    text = (
        "path,label,split\ncat/0.png,cat,train\ndog/2.png,dog,train\n"
        "dog/3.png,dog,val\ncat/1.png,cat,test\n"
    )
    address = f"csv:{_table(pictures, text)}"
    found = {split: data.load(address, split) for split in ("train", "validation", "test")}
    assert {split: d.labels.tolist() for split, d in found.items()} == {
        "train": [0, 1], "validation": [1], "test": [0],
    }  # fmt: skip
    assert all(d.classes == ("cat", "dog") for d in found.values())


def test_table_without_splits_is_held_out_from(pictures):
    address = f"csv:{_table(pictures, 'path,label' + chr(10) + ROWS)}"
    parts = [data.load(address, split) for split in ("train", "validation")]
    assert sorted(_greys(parts[0]) + _greys(parts[1])) == [0, 1, 2, 3]
    with pytest.raises(DataError, match="has no test split"):
        data.load(address, "test")


def test_numbers_are_the_classes_themselves(pictures):
    text = "path,label,split\ncat/0.png,07,train\ncat/1.png,2,train\ndog/2.png,5,val\n"
    file = _table(pictures, text)
    assert csv.load(str(file), "train").labels.tolist() == [7, 2]
    held_out = csv.load(str(file), "validation")
    assert held_out.labels.tolist() == [5]
    assert held_out.classes == tuple("01234567")


BAD = {
    "103: ragged row": (
        "path,label\ncat/0.png,cat\ncat/1.png\n",
        "list.csv:3: 1 cells, the header has 2; put text with commas in quotes",
    ),
    "103: one cell more": ("path,label\na,b,cat\n", "list.csv:2: 3 cells, the header has 2"),
    "103: quote never closed": (
        'path,label\n"cat/0.png,cat\ncat/1.png,cat\n',
        "list.csv:3: unexpected end of data; is a quote not closed there or before",
    ),
    "103: text after a quote": ('path,label\n"cat"/0.png,cat\n', "list.csv:2: .* is a quote not"),
    "103: NUL": ("path,label\ncat/0.png,c\0t\n", "list.csv:2: a NUL byte; save it as UTF-8 text"),
    "103: long field": (
        f"path,label\n{'a' * 140_000},cat\n",
        r"list.csv:2: field larger than field limit \(131072\)",
    ),
    "103: semicolons": (
        "path;label\ncat/0.png;cat\n",
        "no column 'path', the first line is 'path;label'; separate columns by commas",
    ),
    "103: tabs": ("path\tlabel\ncat/0.png\tcat\n", "no column 'path', .*separate columns by comm"),
    "103: no header": (ROWS, "no column 'path', .*'cat/0.png,cat'; begin with a header: path,lab"),
    "103: other names": (
        "file,class\ncat/0.png,cat\n",
        "no column 'path', the first line is 'file,class'; name the columns path and label",
    ),
    "103: duplicate header": (
        "path,label,label\ncat/0.png,cat,cat\n",
        "the header has 'label' twice; name each column once",
    ),
    "46: empty": ("", "list.csv has no header; its first line must be path,label"),
    "only a header": ("path,label\n", "list.csv lists no training images; expected at least one"),
    "47: UTF-16": ("path,label\n".encode("utf-16"), "list.csv is not UTF-8 text"),
    "47: Latin-1": ("path,label\nk\xe4tzchen.png,cat\n".encode("latin-1"), "is not UTF-8 text"),
    "106: absolute path": (
        "path,label\n/etc/passwd,cat\n",
        "list.csv:2: path '/etc/passwd' leads out of the folder; write it from there, as cat/1",
    ),
    "106: path upwards": ("path,label\ncat/../../x.png,cat\n", "path 'cat/../../x.png' leads out"),
    "106: Windows drive": ("path,label\nC:/x.png,cat\n", "path 'C:/x.png' leads out"),
    "106: backslash": ("path,label\n..\\x.png,cat\n", r"leads out of the folder"),
    "106: no path": ("path,label\n,cat\n", "path '' leads out"),
    "no label": ("path,label\ncat/0.png, \n", "list.csv:2: no label; write one, or leave out"),
    "unknown split": (
        "path,label,split\ncat/0.png,cat,training\n",
        "list.csv:2: split 'training' is none of train, validation, val, valid, test",
    ),
    "no such image": (
        "path,label\ncat/0.png,cat\ncat/9.png,cat\nx.png,dog\n",
        "cat/9.png does not exist; 2 of 3 images listed are not below .*set$",
    ),
    "101: huge number": ("path,label\ncat/0.png,999999999\n", "label 999999999 is out of range"),
    "66: class only in validation": (
        "path,label,split\ncat/0.png,cat,train\ndog/2.png,dog,val\n",
        "label 'dog' of .*dog/2.png is not a class of the training set, which has 1; use",
    ),
    "105: formulas are text": ("path,label\n=1+1,cat\n", "=1[+]1 does not exist; 1 of 1"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_bad_table_is_explained(pictures, text, message):
    file = _table(pictures, text)
    before = snapshot(pictures)
    with pytest.raises(DataError, match=message):
        for split in ("train", "validation"):
            csv.load(str(file), split)
    assert snapshot(pictures) == before


def test_absent_table_is_said(tmp_path):
    with pytest.raises(DataError, match="absent.csv is not a file; check the path"):
        csv.load(str(tmp_path / "absent.csv"), "train")
    with pytest.raises(DataError, match="csv needs a file: csv:FILE"):
        data.load("csv", "train")


def test_S09_huge_table_is_refused(pictures, monkeypatch):
    monkeypatch.setattr(listed, "_MAX_BYTES", 20)
    with pytest.raises(DataError, match="list.csv has more than 20 bytes; split the list"):
        csv.load(str(_table(pictures, "path,label\n" + ROWS)), "train")


def test_S06_folder_that_is_a_link_out_is_refused(pictures):
    outside = pictures.parent / "outside"
    outside.mkdir()
    (pictures / "cat" / "0.png").rename(outside / "0.png")
    (pictures / "link").symlink_to(outside)
    file = _table(pictures, "path,label\nlink/0.png,cat\n")
    with pytest.raises(DataError, match="set/link is a link out of .*set; replace it"):
        csv.load(str(file), "train")


def test_S06_image_that_becomes_a_link_is_refused_when_it_is_read(pictures):
    dataset = csv.load(str(_table(pictures, "path,label\n" + ROWS)), "train")
    (pictures.parent / "secret.png").write_bytes((pictures / "cat" / "0.png").read_bytes())
    (pictures / "cat" / "1.png").unlink()
    (pictures / "cat" / "1.png").symlink_to(pictures.parent / "secret.png")
    with pytest.raises(DataError, match=r"cat/1.png is a link; .* \(image 1 of its set\)"):
        dataset.images[torch.arange(4)]


TEXT = st.sampled_from(
    ["path", "label", "split", ",", "\n", "\r\n", '"', "cat/0.png", "cat", "1", "train", "val", ";"]
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.lists(TEXT, max_size=20).map(lambda t: "".join(t))))
def test_S21_any_table_is_read_or_refused_with_our_error(content):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "list.csv")
        file.write_bytes(
            content if isinstance(content, bytes) else b"path,label\n" + content.encode()
        )
        with contextlib.suppress(DataError):
            csv.load(str(file), "train")


def test_79_path_that_is_no_unicode_elsewhere_is_read(pictures):
    name = "k\xe4tzchen \U0001f408.png"
    os.rename(pictures / "cat" / "0.png", pictures / "cat" / name)
    file = pictures / "list.csv"
    with file.open("w", encoding="utf-8", newline="") as stream:
        stdlib_csv.writer(stream).writerows([["path", "label"], [f"cat/{name}", "1"]])
    assert _greys(csv.load(str(file), "train")) == [0]
