"""Pixels from CSV and tables to CSV."""

import hashlib
import time

import numpy as np
import pytest

from normlab.lab.data.dataset import DataError
from normlab.lab.data.pixels import read_csv, write_csv

SHAPE = (3, 1, 2)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"0,1,2,3,4,5\n250,251,252,253,254,255\n", id="plain"),
        pytest.param(b"0,1,2,3,4,5\n250,251,252,253,254,255", id="no newline at the end"),
        pytest.param(
            b"\xef\xbb\xbf0,1,2,3,4,5\r\n250,251,252,253,254,255\r\n", id="104: BOM, CRLF"
        ),
        pytest.param(b"0, 1,2 ,3,4,5\n\n250,251,252,253,254,255\n\n", id="spaces, empty lines"),
    ],
)
def test_rows_are_images_channel_first(tmp_path, content):
    file = tmp_path / "x.csv"
    file.write_bytes(content)
    images = read_csv(file, SHAPE)
    assert images.tolist() == [
        [[[0, 1]], [[2, 3]], [[4, 5]]],
        [[[250, 251]], [[252, 253]], [[254, 255]]],
    ]


GOOD = b"0,1,2,3,4,5\n"
BAD = {
    "103: ragged row": (GOOD * 2 + b"1,2,3\n", r"x.csv:3: 3 numbers, expected 6 \(3×1×2\)$"),
    "103: a label column": (b"7," + GOOD, "x.csv:1: 7 numbers, expected 6 .*remove the column of"),
    "103: ragged after an empty line": (GOOD + b"\n1,2\n", "x.csv:3: 2 numbers, expected 6"),
    "103: quote never closed": (GOOD + b'"1,2,3,4,5,6\n', "x.csv:2: column 1 is '\"1'.*the quotes"),
    "103: NUL": (GOOD + b"1,2,\0,4,5,6\n", "x.csv:2: a NUL byte"),
    "103: UTF-16": (GOOD.decode().encode("utf-16"), "x.csv:1: not UTF-8 text"),
    "103: field of 200,000 characters": (b"1" * 200_000, "x.csv:1: column 1 is '1{40}', expected"),
    "103: semicolons": (b"0;1;2;3;4;5\n", "x.csv:1: .*separate the numbers by commas"),
    "103: tabs": (b"0\t1\t2\t3\t4\t5\n", "x.csv:1: .*separate the numbers by commas"),
    "103: header": (b"a,b,c,d,e,f\n" + GOOD, "x.csv:1: .*looks like a header, remove it"),
    "103: header twice": (b"a,a,a,a,a,a\n" * 2, "x.csv:1: .*looks like a header, remove it"),
    "104: decimal comma": (b"0,5;1,0;2,0\n", "x.csv:1: column 2 is '5;1'.*no decimal commas"),
    "105: formula": (GOOD + b"=1+1,2,3,4,5,6\n", r"x.csv:2: column 1 is '=1\+1', expected a whole"),
    "106: absolute path": (b"/etc/passwd,1,2,3,4,5\n", "x.csv:1: column 1 is '/etc/passwd'"),
    "106: path to a parent": (GOOD + b"../x.png\n", r"x.csv:2: column 1 is '\.\./x.png'"),
    "256": (GOOD + b"0,1,2,256,4,5\n", "x.csv:2: column 4 is '256', expected a whole number 0 to"),
    "negative": (b"0,1,2,-3,4,5\n", "x.csv:1: column 4 is '-3'"),
    "scaled to 1": (b"0,0.5,1,1,1,1\n", "x.csv:1: column 2 is '0.5', .*save the pixels unscaled"),
    "NaN": (GOOD + b"0,nan,1,1,1,1\n", "x.csv:2: column 2 is 'nan'"),
    "empty cell": (GOOD + b"0,,1,1,1,1\n", "x.csv:2: column 2 is ''"),
    "digits of another script": ("٣,1,2,3,4,5\n".encode(), "x.csv:1: column 1 is '٣'"),
    "all rows of another size": (b"1,2\n3,4\n", "x.csv:1: 2 numbers, expected 6"),
    "empty file": (b"", "x.csv is empty; expected 6 numbers a line"),
    "only empty lines": (b"\n\n", "x.csv is empty"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_bad_file_is_explained_with_its_line(tmp_path, content, message):
    file = tmp_path / "x.csv"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_csv(file, SHAPE)
    assert hashlib.sha256(file.read_bytes()).digest() == hashlib.sha256(content).digest()


def test_missing_file_is_said(tmp_path):
    with pytest.raises(DataError, match="absent.csv is not a file; expected a CSV file of pixels"):
        read_csv(tmp_path / "absent.csv", SHAPE)


def test_reading_is_fast(tmp_path):
    """10,000 images of 3×32×32 within 5 s of CPU: here a twentieth of both."""
    rows = np.random.default_rng(0).integers(0, 256, (500, 3072), dtype=np.uint8)
    np.savetxt(tmp_path / "x.csv", rows, fmt="%d", delimiter=",")
    start = time.process_time()
    images = read_csv(tmp_path / "x.csv", (3, 32, 32))
    assert time.process_time() - start < 5 / 20
    assert np.array_equal(images.reshape(500, -1).numpy(), rows)


def test_105_formula_cells_are_quoted_and_numbers_are_not(tmp_path):
    file = tmp_path / "out.csv"
    cells = ["=1+1", "+1", "-1", "@x", "\tx", "a,b", 'say "x"', -1, 0.5]
    write_csv(file, [cells], header=["=name", *"bcdefghi"])
    assert file.read_text() == (
        '\'=name,b,c,d,e,f,g,h,i\n\'=1+1,\'+1,\'-1,\'@x,\'\tx,"a,b","say ""x""",-1,0.5\n'
    )


def test_interrupted_writing_leaves_the_old_table(tmp_path):
    file = tmp_path / "out.csv"
    write_csv(file, [[1]])

    def rows():
        yield [2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_csv(file, rows())
    assert [p.read_text() for p in tmp_path.iterdir()] == ["1\n"]


def test_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(DataError, match="out.csv cannot be written: .*No such file"):
        write_csv(tmp_path / "absent" / "out.csv", [[1]])
