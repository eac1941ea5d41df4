"""Files of settings: what is wrong in them is said with file and line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normlab.lab import config
from normlab.lab.experiment import ExperimentError


def write(tmp_path, content: bytes | str):
    path = tmp_path / "settings.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("norm: group\nnorm: batch\n", r"settings\.yaml:2: 'norm' is set twice; keep one"),
        ("!!python/object/apply:os.system ['true']", "only plain values are read"),
        ("", "is empty; write fields such as `norm: group`"),
        (b"norm: \xff\xfe", r"not UTF-8 \(byte 6\); save it as UTF-8"),
        ("a:\n\t- b\n", "line 2"),
        ("a: [" + "1, " * 400_000 + "1]", r"1200\d\d\d bytes, settings have at most 1000000"),
        ("a: &a [1]\nb: [" + "*a, " * 200 + "*a]", "more than 100 aliases; write values out"),
        ("[" * 3000, "nested too deeply|line 1"),
        ("- norm", "expected fields such as `norm: group`, got list"),
        ("1: 2", "field names are text, got 1"),
        ("norm: [", "line 1|line 2"),
    ],
    ids=["44: duplicate", "45: tag", "46: empty", "47: not UTF-8", "48: tab", "49: size",
         "49: aliases", "49: depth", "list", "number as key", "syntax"],
)  # fmt: skip
def test_bad_file_is_explained(tmp_path, content, message):
    with pytest.raises(ExperimentError, match=message):
        config.read(write(tmp_path, content))


def test_byte_order_mark_and_hyphens_are_understood(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbfbatch-size: 8\nnorm: group\n")
    assert config.read(path) == {"batch_size": 8, "norm": "group"}


def test_json_is_read_too(tmp_path):
    assert config.read(write(tmp_path, '{"batch_size": 8, "norm": "group"}'))["batch_size"] == 8


@pytest.mark.parametrize(
    ("path", "message"),
    [("none.yaml", "cannot be read: No such file"), (".", "is a folder; give a YAML or JSON")],
    ids=["50: missing", "51: folder"],
)
def test_path_that_is_no_file_is_explained(tmp_path, path, message):
    with pytest.raises(ExperimentError, match=message):
        config.read(tmp_path / path)


@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_content_is_read_or_refused_with_a_sentence(tmp_path_factory, content):
    path = write(tmp_path_factory.mktemp("fuzz"), content)
    try:
        fields = config.read(path)
    except ExperimentError as error:
        assert str(path) in str(error)
    else:
        assert all(isinstance(key, str) for key in fields)
