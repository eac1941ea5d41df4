"""Folders of images: layouts, and what is said about bad ones."""

import os
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from files import snapshot

from normlab.lab import data
from normlab.lab.data import folder
from normlab.lab.data.dataset import DataError

Image = pytest.importorskip("PIL.Image")

SHARED = Path(__file__).parents[2] / "shared" / "data"  # real files, where they are at hand


def _picture(path, value=100, size=(6, 4), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    color = (value,) * len(mode) if len(mode) > 1 else value
    Image.new(mode, size, color).save(path, **options)
    return path


def _classes(top, names=("cat", "dog"), value=0):
    """Two images a class, each of its own grey."""
    for k, name in enumerate(names):
        _picture(top / name / "a.png", value + 20 * k)
        _picture(top / name / "deep" / "b.PNG", value + 20 * k + 10)
    return top


def _grey(dataset):
    return dataset.images[:, 0, 0, 0].tolist()


def test_folders_are_classes_and_train_is_held_out_from(tmp_path):
    _classes(tmp_path, ("zebra", "ape"))
    (tmp_path / "README.txt").write_text("not an image")
    (tmp_path / "ape" / "._a.png").write_bytes(b"hidden")
    train, held_out = (data.load(f"folder:{tmp_path}", s) for s in ("train", "validation"))
    assert train.classes == ("ape", "zebra")
    assert train.images.shape == (3, 3, 4, 6)
    label_of = {20: 0, 30: 0, 0: 1, 10: 1}
    both = _grey(train) + _grey(held_out)
    assert sorted(both) == [0, 10, 20, 30]
    assert [label_of[v] for v in both] == [*train.labels.tolist(), *held_out.labels.tolist()]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_folder_may_have_any_usual_name(tmp_path, name):
    _classes(tmp_path / "train")
    _classes(tmp_path / name, value=100)
    _classes(tmp_path / "test", value=200)
    splits = [data.load(f"folder:{tmp_path}", s) for s in ("train", "validation", "test")]
    assert [_grey(d) for d in splits] == [
        [0, 10, 20, 30],
        [100, 110, 120, 130],
        [200, 210, 220, 230],
    ]
    assert all(d.labels.tolist() == [0, 0, 1, 1] for d in splits)


def test_large_sets_are_decoded_as_they_are_fetched(tmp_path, monkeypatch):
    _classes(tmp_path / "train")
    _classes(tmp_path / "val", value=100)
    eager = data.load(f"folder:{tmp_path}", "train").images
    monkeypatch.setattr(data, "IN_MEMORY", 100)
    lazy = data.load(f"folder:{tmp_path}", "train").images
    assert isinstance(eager, torch.Tensor)
    assert not isinstance(lazy, torch.Tensor)
    assert torch.equal(lazy[torch.tensor([3, 0, 3])], eager[[3, 0, 3]])


def test_image_size_makes_images_of_all_sizes_fit(tmp_path):
    _classes(tmp_path)
    _picture(tmp_path / "cat" / "wide.jpg", size=(500, 3))
    _picture(tmp_path / "cat" / "dot.gif", size=(1, 1), mode="L")
    dataset = data.load(f"folder:{tmp_path}", "train", image_size=8)
    assert dataset.images.shape == (5, 3, 8, 8)


def _png_header(width, height):
    """A PNG that says it is huge, in 60 bytes."""

    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


def _half_jpeg():
    import io

    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, "JPEG")
    return out.getvalue()[: len(out.getvalue()) // 2]


BAD_FILES = {
    "70: 0 bytes": ("x.jpg", b"", r"cat/x.jpg is empty \(0 bytes\); replace or remove it"),
    "71: HTML as .jpg": (
        "x.jpg",
        b"<!DOCTYPE html><html>",
        r"cat/x.jpg is not an image in JPEG, .*: it starts with b'<!DOCTYPE html><'; remove it",
    ),
    "72: half a JPEG": ("x.jpg", _half_jpeg(), "cat/x.jpg cannot be read .*truncated"),
    "73: header of 400 million pixels": (
        "x.png",
        _png_header(20_000, 20_000),
        "cat/x.png has more than 89,478,485 pixels; make it smaller or remove it",
    ),
    "74: 90 million pixels": (
        "x.png",
        _png_header(10_000, 9_000),
        "cat/x.png has more than 89,478,485 pixels",
    ),
    "77: EPS as .png": ("x.png", b"%!PS-Adobe-3.0 EPSF-3.0\n", "is not an image in JPEG"),
    "77: SVG as .png": ("x.png", b"<svg xmlns='http://x'/>", "is not an image in JPEG"),
    "77: TIFF as .png": ("x.png", b"II*\0\x08\0\0\0" + bytes(20), "is not an image in JPEG"),
    "F10: damaged PNG": ("x.png", _png_header(4, 4) + b"\0" * 9, "cat/x.png cannot be read"),
    "79: newline in the name": ("a\nb.png", b"", r"cat/a\\nb.png is empty"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_image_stops_with_its_path(tmp_path, name, content, message):
    _classes(tmp_path)
    (tmp_path / "cat" / name).write_bytes(content)
    before = snapshot(tmp_path)
    with pytest.raises(DataError, match=message):
        for split in ("train", "validation"):  # it is in one of them
            data.load(f"folder:{tmp_path}", split)
    assert snapshot(tmp_path) == before


def test_69_unreadable_file_is_named(tmp_path, monkeypatch):
    path = _picture(tmp_path / "x.png")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(DataError, match=r"x.png cannot be read \(.*Permission denied"):
        folder.decode(path)


def test_69_unreadable_folder_is_named_and_not_skipped(tmp_path, monkeypatch):
    _classes(tmp_path)
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cat/deep cannot be read .*Permission denied"):
        folder.load(str(tmp_path), "train")


def _make_61(top):
    return top / "absent"


def _make_61_file(top):
    return _picture(top / "x.png")


def _make_62(top):
    return top


def _make_63(top):
    return _classes(top, ("cat",))


def _make_64(top):
    _classes(top)
    (top / "eel").mkdir()
    return top


def _make_65(top):
    _picture(_classes(top) / "loose.png")
    return top


def _make_66(top):
    _classes(top / "train")
    _classes(top / "val", ("cat", "dog", "eel"))
    return top


def _make_66_no_train(top):
    _classes(top / "val")
    return top


def _make_68_outside(top):
    _picture(top.parent / "outside.png")
    _classes(top)
    (top / "cat" / "link.png").symlink_to(top.parent / "outside.png")
    return top


def _make_68_folder(top):
    _classes(top)
    (top / "eel").symlink_to(_classes(top.parent / "elsewhere"))
    return top


def _make_68_loop(top):
    _classes(top)
    (top / "cat" / "again").symlink_to(top)
    return top


def _make_sizes(top):
    _picture(_classes(top) / "cat" / "c.png", size=(7, 4))
    return top


BAD_FOLDERS = {
    "61: no such folder": (
        _make_61,
        r"absent does not exist; expected a folder with one folder per",
    ),
    "61: a file": (_make_61_file, "x.png is a file; expected a folder"),
    "62: empty": (_make_62, "set is empty; expected one folder of images per class"),
    "63: one class": (_make_63, r"set has one class \('cat'\); expected at least two"),
    "64: class folder empty": (_make_64, "set/eel has no images; add some or remove the folder"),
    "65: files in the root": (_make_65, "set itself holds 1 images, such as 'loose.png'; put each"),
    "66: train and val classes differ": (
        _make_66,
        "set/val has classes that .*set/train has not: 'eel'; both must have the same",
    ),
    "66: no train": (_make_66_no_train, "set has no folder train; add one beside"),
    "68: link out of the root": (_make_68_outside, "cat/link.png is a link; links below .*set are"),
    "68: link to a folder": (_make_68_folder, "set/eel is a link"),
    "68: link loop": (_make_68_loop, "cat/again is a link"),
    "images of two sizes": (
        _make_sizes,
        "c.png is 4×7 pixels, .*a.png 4×6; images differ in size, say --image-size N",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_bad_folder_is_explained(tmp_path, make, message):
    top = tmp_path / "set"
    top.mkdir()
    root = make(top)
    before = snapshot(tmp_path)
    with pytest.raises(DataError, match=message):
        for split in ("validation", "train"):
            data.load(f"folder:{root}", split)
    assert snapshot(tmp_path) == before


def test_64_class_without_validation_images_is_only_warned_of(tmp_path):
    _classes(tmp_path / "train")
    _classes(tmp_path / "val", ("dog",), value=100)
    with pytest.warns(UserWarning, match="val has no images of 'cat'"):
        assert folder.load(str(tmp_path), "validation").labels.tolist() == [1, 1]


def test_67_copies_of_training_images_are_counted(tmp_path):
    _classes(tmp_path / "train")
    _classes(tmp_path / "test", value=20)  # its cat images are the training dogs
    with pytest.warns(UserWarning, match=r"2 images of .*test are in .*train too, such as .*a.png"):
        folder.load(str(tmp_path), "test")


def test_67_different_images_are_not_warned_of(tmp_path):
    _classes(tmp_path / "train")
    _classes(tmp_path / "test", value=100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder.load(str(tmp_path), "test")


@pytest.mark.parametrize(
    "name", ["__proto__", "nan", "<img onerror>", "a\nb", "Cat"], ids=["82", "82", "79", "79", "80"]
)
def test_class_may_have_a_strange_name(tmp_path, name):
    _classes(tmp_path, ("cat", name))
    assert set(folder.load(str(tmp_path), "train").classes) == {"cat", name}


def test_79_class_name_that_is_no_unicode_becomes_text(tmp_path):
    try:
        _classes(tmp_path, ("cat", os.fsdecode(b"\xff\xfe")))
    except OSError:
        pytest.skip("the file system takes only Unicode")
    assert folder.load(str(tmp_path), "train").classes == ("cat", "??")


def test_flat_folder_lists_its_images_for_prediction(tmp_path):
    for name in ("b.png", "a.jpg"):
        _picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    paths = folder.list_images(tmp_path)
    assert [p.name for p in paths] == ["a.jpg", "b.png"]
    assert folder.list_images(paths[0]) == [paths[0]]


@pytest.mark.parametrize(
    ("name", "message"),
    [("absent", "absent does not exist"), (".", "has no images; endings known are .jpg")],
)
def test_nothing_to_predict_is_said(tmp_path, name, message):
    with pytest.raises(DataError, match=re.escape(message)):
        folder.list_images(tmp_path / name)


def test_address_without_path_is_said():
    with pytest.raises(DataError, match="folder needs a path: folder:PATH"):
        data.load("folder", "train")


@pytest.mark.skipif(not (SHARED / "tiny-imagenet-10").is_dir(), reason="needs the shared data")
def test_real_folders_load():
    tiny = f"folder:{SHARED / 'tiny-imagenet-10' / 'train'}"
    few = data.load(tiny, "train", limit=200)
    assert few.images.shape == (200, 3, 64, 64)
    assert (len(few.classes), few.labels.unique().numel()) == (10, 10)
    samples = data.load(f"folder:{SHARED / 'imagenet-samples'}", "train", image_size=32)
    assert samples.images.shape == (51, 3, 32, 32)
