"""Images in tar files: any of them at once, and what is said about bad tars."""

import io
import tarfile

import pytest
import torch

from normlab.lab import data
from normlab.lab.data import webdataset
from normlab.lab.data.batches import Batches
from normlab.lab.data.dataset import DataError

Image = pytest.importorskip("PIL.Image")


def _png(value, kind="PNG"):
    out = io.BytesIO()
    Image.new("RGB", (4, 4), (value,) * 3).save(out, kind)
    return out.getvalue()


def _member(name, content):
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(content), 1.5  # the package writes such times: extended headers
    return info, content


def _sample(k, label, name="{:06d}", ending="png"):
    key = name.format(k)
    kind = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[ending]
    return [_member(f"{key}.{ending}", _png(k, kind)), _member(f"{key}.cls", str(label).encode())]


def _write(path, members, mode="w", **options):
    with tarfile.open(path, mode, **options) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def _shards(folder, name, counts, first=0):
    for number, count in enumerate(counts):
        members = [m for k in range(first, first + count) for m in _sample(k, k % 3)]
        _write(folder / f"{name}-{number:04d}.tar", members)
        first += count
    return folder


def _greys(dataset):
    return dataset.images[torch.arange(len(dataset))][:, 0, 0, 0].tolist()


def test_folder_of_tars_is_read_by_split(tmp_path):
    _shards(tmp_path, "train", (4, 3))
    _shards(tmp_path, "val", (2,), first=100)
    train, judged = (data.load(f"webdataset:{tmp_path}", s) for s in ("train", "validation"))
    assert _greys(train) == list(range(7))
    assert train.labels.tolist() == [k % 3 for k in range(7)]
    assert _greys(judged) == [100, 101]
    assert train.classes == judged.classes == ("0", "1", "2")
    with pytest.raises(DataError, match="has no test split"):
        data.load(f"webdataset:{tmp_path}", "test")


@pytest.mark.parametrize(
    ("pattern", "count"), [("train-{0000..0001}.tar", 7), ("train-0001.tar", 3)], ids=str
)
def test_pattern_names_training_tars(tmp_path, pattern, count):
    _shards(tmp_path, "train", (4, 3))
    what = str(tmp_path / pattern)
    assert len(webdataset.load(what, "train")) == count
    assert webdataset.load(what, "validation") is None


def test_images_come_in_any_order(tmp_path):
    _shards(tmp_path, "train", (5, 5))
    dataset = webdataset.load(str(tmp_path), "train")
    assert dataset.images[torch.tensor([9, 0, 5, 0])][:, 0, 0, 0].tolist() == [9, 0, 5, 0]
    batch = Batches(dataset, 4, seed=0, augment="resized_crop")[3, 1]
    assert batch.images[:, 0, 0, 0].tolist() == batch.indices.tolist()


def test_samples_may_have_any_names_formats_and_more_members(tmp_path):
    members = [
        *_sample(1, 0, name="n01/val_{}" + "long" * 40),
        *_sample(250, 1, name="n.01/{}", ending="jpg"),
        *_sample(3, 1, name="{}", ending="webp"),
        _member("3.json", b"{}"),
        (tarfile.TarInfo("n01"), b""),
    ]
    members[-1][0].type = tarfile.DIRTYPE
    _write(tmp_path / "train-0.tar", members, format=tarfile.GNU_FORMAT)
    dataset = webdataset.load(str(tmp_path), "train")
    assert all(abs(a - b) <= 2 for a, b in zip(_greys(dataset), [1, 250, 3]))
    assert dataset.labels.tolist() == [0, 1, 1]


def _link(name, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info, b""


BAD = {
    "S05: symbolic link": ([_link("0.png", tarfile.SYMTYPE)], "0.png is a link or a device; pack"),
    "S05: hard link": ([_link("0.png", tarfile.LNKTYPE)], "0.png is a link or a device"),
    "S05: device": ([_link("0.png", tarfile.CHRTYPE)], "0.png is a link or a device"),
    "S05: pipe": ([_link("0.png", tarfile.FIFOTYPE)], "0.png is a link or a device"),
    "image without class": (
        [*_sample(0, 0), _member("1.png", _png(1))],
        r"train-0.tar: 1 has no class \(.cls\); write both for each sample",
    ),
    "class without image": (
        [*_sample(0, 0), _member("1.cls", b"1")],
        r"train-0.tar: 1 has no image \(.jpg, .*\); write both",
    ),
    "class that is no number": (
        [_member("0.png", _png(0)), _member("0.cls", b"cat")],
        "train-0.tar: 0.cls is b'cat', expected the number of a class",
    ),
    "101: huge class": ([*_sample(0, 999_999_999)], "label 999999999 is out of range"),
    "twice": ([*_sample(0, 0), *_sample(0, 0)], "train-0.tar: 000000 comes twice; give each"),
    "no samples": ([_member("readme.txt", b"")], "train-0.tar has no samples NAME.jpg, NAME.cls"),
    "79: name with a newline": ([_member("a\nb.png", b"")], r"train-0.tar: a\\nb has no class"),
}


@pytest.mark.parametrize(("members", "message"), BAD.values(), ids=BAD)
def test_bad_tar_is_explained(tmp_path, members, message):
    _write(tmp_path / "train-0.tar", members)
    with pytest.raises(DataError, match=message):
        webdataset.load(str(tmp_path), "train")
    assert [p.name for p in tmp_path.iterdir()] == ["train-0.tar"]


def test_S05_number_and_size_of_members_are_bounded(tmp_path, monkeypatch):
    _shards(tmp_path, "train", (3,))
    monkeypatch.setattr(webdataset, "_MAX_MEMBERS", 5)
    with pytest.raises(DataError, match="000002.cls is one more than 5 members"):
        webdataset.load(str(tmp_path), "train")
    monkeypatch.setattr(webdataset, "_MAX_IMAGE", 10)
    with pytest.raises(DataError, match="000000.png has more than 10 bytes"):
        webdataset.load(str(tmp_path), "train")


def test_tar_cut_short_anywhere_is_refused(tmp_path):
    whole = _shards(tmp_path, "train", (2,)) / "train-0000.tar"
    content = whole.read_bytes()
    end = len(content.rstrip(b"\0"))
    assert end > 4 * 512
    for length in [*range(0, end, 331), *range(0, end, 512)]:
        whole.write_bytes(content[:length])
        with pytest.raises(DataError, match="train-0000.tar|has no"):
            webdataset.load(str(tmp_path), "train")


def test_damaged_headers_lose_no_sample_silently(tmp_path):
    """Every 23rd byte of all headers flipped, one at a time."""
    whole = _shards(tmp_path, "train", (3,)) / "train-0000.tar"
    content = whole.read_bytes()
    with tarfile.open(whole) as tar:
        headers = [k for m in tar for k in range(m.offset, m.offset_data)]
    refused = 0
    for position in headers[::23]:
        damaged = bytearray(content)
        damaged[position] ^= 0x15
        whole.write_bytes(damaged)
        try:
            assert len(webdataset.load(str(tmp_path), "train")) == 3
        except DataError:
            refused += 1
    assert refused > len(headers) // 23 // 2


def test_compressed_tar_is_refused(tmp_path):
    _write(tmp_path / "train-0.tar", _sample(0, 0), mode="w:gz")
    with pytest.raises(DataError, match="train-0.tar is damaged or no uncompressed tar"):
        webdataset.load(str(tmp_path), "train")


def test_F10_damaged_image_is_named_with_its_tar(tmp_path):
    _write(
        tmp_path / "train-0.tar", [*_sample(0, 0), _member("1.jpg", b""), _member("1.cls", b"1")]
    )
    dataset = webdataset.load(str(tmp_path), "train")
    message = r"train-0.tar: 1 is empty \(0 bytes\); .* \(image 1 of its set\)"
    with pytest.raises(DataError, match=message):
        dataset.images[torch.tensor([0, 1])]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("", "webdataset needs tars: webdataset:FOLDER or"),
        ("{}/train-{{0..2}}.tar", "train-0.tar does not exist; check the path"),
        ("{}/train-{{5..2}}.tar", "{5..2} is no range of at most 100,000 tars"),
        ("{}/train-{{0..999999999}}.tar", "{0..999999999} is no range of at most 100,000 tars"),
        ("{}", "has no train-[*].tar; name the tars of each split after it"),
        ("pipe:cat {}/x.tar", "pipe:cat .*x.tar does not exist"),
    ],
    ids=["nothing", "absent", "falling range", "huge range", "empty folder", "no command is run"],
)
def test_address_of_no_tars_is_explained(tmp_path, what, message):
    with pytest.raises(DataError, match=message):
        webdataset.load(what.format(tmp_path), "train")


def test_tar_written_anew_is_read_anew(tmp_path):
    _shards(tmp_path, "train", (4,))
    assert len(webdataset.load(str(tmp_path), "train")) == 4
    _shards(tmp_path, "train", (6,))
    assert len(webdataset.load(str(tmp_path), "train")) == 6
