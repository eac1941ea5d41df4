"""Addresses: the file that serves them, and the message when there is none."""

import re
import subprocess
import sys

import pytest

from normlab.lab import address


@pytest.mark.parametrize(
    ("text", "module", "rest"),
    [
        pytest.param("digits", "normlab.lab.data.digits", "", id="no colon"),
        pytest.param("npz:/data/cells.npz", "normlab.lab.data.npz", "/data/cells.npz", id="path"),
        pytest.param("folder:C:\\cells", "normlab.lab.data.folder", "C:\\cells", id="two colons"),
    ],
)
def test_address_names_a_file_of_the_package(text, module, rest):
    found, left = address.resolve("data", text)
    assert (found.__name__, left) == (module, rest)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            "cifar1:x",
            '"cifar1:x": no module normlab.lab.data.cifar1; did you mean cifar10; there are ',
            id="a typing error",
        ),
        pytest.param("dataset:x", "no module normlab.lab.data.dataset; ", id="a file without load"),
        pytest.param("../digits", "no module normlab.lab.data.../digits; ", id="a path"),
        pytest.param("", '"": no module normlab.lab.data.; there are ', id="empty"),
        pytest.param("no_such.module:x", "no module no_such; is its folder on", id="foreign"),
        pytest.param("os.path:x", "module os.path has no function load", id="foreign without load"),
    ],
)
def test_address_without_source_says_what_there_is(text, message):
    with pytest.raises(address.AddressError, match=re.escape(message)):
        address.resolve("data", text)


def test_files_that_are_no_sources_are_not_listed():
    names = address.available("data")
    assert {"digits", "folder", "hdf5", "mnist", "npz", "relit_digits"} <= set(names)
    assert not {"dataset", "arrays", "download", "pixels", "published", "__init__"} & set(names)


def test_foreign_source_is_imported_as_it_stands(tmp_path, monkeypatch):
    package = tmp_path / "own_package"
    package.mkdir()
    (package / "cells.py").write_text("def load(what, split):\n    return what, split\n")
    monkeypatch.syspath_prepend(tmp_path)
    module, rest = address.resolve("data", "own_package.cells:a:b")
    assert module.load(rest, "train") == ("a:b", "train")


def test_what_a_foreign_source_lacks_itself_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "needy").mkdir()
    (tmp_path / "needy" / "source.py").write_text("import not_installed_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_here"):
        address.resolve("data", "needy.source:x")


def test_import_does_not_load_torch():
    code = (
        "import sys, normlab.lab.address as a; a.available('data'); print('torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
