"""Unpacking published sets: hostile archives are refused whole."""

import gzip
import tarfile

import pytest
from files import sha256_of, tar_gz, tree

from normlab.lab.data.download import DownloadError, unpack_gz, unpack_tar

RAW = b"pixels" * 50
PACKED = gzip.compress(RAW)


def _special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        pytest.param([("../out", b"x")], "'../out' leads out", id="parent"),
        pytest.param([("set/../../out", b"x")], "leads out", id="parent inside"),
        pytest.param([("/tmp/out-abs", b"x")], "leads out", id="absolute"),
        pytest.param([("C:\\out", b"x")], "leads out", id="Windows path"),
        pytest.param([_special("l", tarfile.SYMTYPE, "/etc")], "link or a device", id="symlink"),
        pytest.param(
            [_special("l", tarfile.SYMTYPE, ".."), ("l/out", b"x")], "link", id="file below link"
        ),
        pytest.param([_special("l", tarfile.LNKTYPE, "/etc/passwd")], "link", id="hard link"),
        pytest.param([_special("d", tarfile.CHRTYPE)], "link or a device", id="device"),
        pytest.param([_special("p", tarfile.FIFOTYPE)], "link or a device", id="pipe"),
        pytest.param([("a", b"1"), ("a", b"2")], "'a' comes twice", id="twice"),
        pytest.param([(str(k), b"") for k in range(1001)], "more than 1000 files", id="many"),
        pytest.param([("bomb", bytes(10**6))], "unpacks to more than", id="bomb"),
        pytest.param([("set/one", b"other")], "set/one is missing or has not", id="other content"),
    ],
)
def test_S05_hostile_tar_is_refused_whole(tmp_path, entries, message):
    root = tmp_path / "data"
    root.mkdir()
    archive = root / "hostile.tar.gz"
    archive.write_bytes(tar_gz([*entries, ("set/two", b"2")]))
    before = tree(tmp_path)
    with pytest.raises(DownloadError, match=message):
        unpack_tar(archive, root, {"set/one": f"sha256:{sha256_of(b'1')}"})
    assert tree(tmp_path) == before
    assert list(root.iterdir()) == [archive]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(gzip.compress(bytes(10**6)), "unpacks to more than", id="bomb"),
        pytest.param(PACKED[:-10], "is damaged", id="cut short"),
        pytest.param(b"<html>", "is damaged", id="no gzip"),
        pytest.param(gzip.compress(b"other"), "does not have the sha256", id="other content"),
    ],
)
def test_S05_hostile_gz_leaves_nothing(tmp_path, content, message):
    archive = tmp_path / "x.gz"
    archive.write_bytes(content)
    with pytest.raises(DownloadError, match=message):
        unpack_gz(archive, tmp_path / "x", f"sha256:{sha256_of(RAW)}")
    assert tree(tmp_path) == {"x.gz": content}
