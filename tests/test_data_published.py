"""The five published sets, from small files of the published formats."""

import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from normlab.lab import data
from normlab.lab.data.dataset import DataError
from normlab.lab.data.download import fetch
from normlab.lab.data.published import SETS, Archive

datasets = pytest.importorskip("torchvision.datasets")

SHARED = Path(__file__).parents[2] / "shared" / "data"  # real files, where they are at hand
SPLITS = {"train": (50, 0), "test": (20, 100)}  # images, value of the first pixel


def _idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return header + array.tobytes()


def _pin(monkeypatch, name, root, paths):
    """Take files for the published ones."""
    members = {
        path: "sha256:" + hashlib.sha256((root / path).read_bytes()).hexdigest() for path in paths
    }
    monkeypatch.setitem(SETS, name, (Archive("none", (), 0, "", members),))


@pytest.fixture(params=["mnist", "fashion_mnist"])
def grey(request, tmp_path, monkeypatch):
    name = request.param
    raw = tmp_path / {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name] / "raw"
    raw.mkdir(parents=True)
    for split, (count, first) in SPLITS.items():
        stem = "t10k" if split == "test" else "train"
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 2, 5] = np.arange(count) + first
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(_idx(images))
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(_idx(labels))
    _pin(monkeypatch, name, tmp_path, [str(p.relative_to(tmp_path)) for p in raw.iterdir()])
    monkeypatch.setenv("NORMLAB_DATA", str(tmp_path))
    return name


@pytest.mark.parametrize("split", SPLITS)
def test_grey_images_have_one_channel_and_keep_their_place(grey, split):
    dataset = data.load(grey, split, validation=0.02)  # leaves 49 of 50
    count, first = SPLITS[split]
    held = 1 if split == "train" else 0
    assert dataset.images.shape == (count - held, 1, 28, 28)
    values = dataset.images[:, 0, 2, 5].to(torch.int64) - first
    assert torch.equal(dataset.labels, values % 10)
    assert len(dataset.classes) == 10


def test_file_with_wrong_checksum_is_named(grey, tmp_path):
    (file,) = tmp_path.glob("*/raw/t10k-labels-idx1-ubyte")
    file.write_bytes(file.read_bytes() + b"x")
    message = f"{file} is not the published file, its hash is not sha256:"
    with pytest.raises(DataError, match=f"{re.escape(message)}.*normlab data {grey}"):
        data.load(grey, "train")


@pytest.mark.parametrize("name", sorted(SETS))
def test_absent_set_says_how_to_fetch_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NORMLAB_DATA", raising=False)
    message = f"{name} is not in data/; fetch it with: normlab data {name}"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        data.load(name, "train")


def test_svhn_splits_come_from_different_files_and_no_image_is_in_both(tmp_path, monkeypatch):
    """A predecessor mixed the splits: 13,257 training images were in its test set."""
    savemat = pytest.importorskip("scipy.io").savemat
    assert [a.path for a in SETS["svhn"]] == ["train_32x32.mat", "test_32x32.mat"]
    for split, (count, first) in SPLITS.items():
        images = np.zeros((32, 32, 3, count), np.uint8)
        images[2, 5, 1] = np.arange(count) + first
        labels = (np.arange(count) % 10)[:, None]
        labels[labels == 0] = 10  # as published
        savemat(tmp_path / f"{split}_32x32.mat", {"X": images, "y": labels})
    _pin(monkeypatch, "svhn", tmp_path, ["train_32x32.mat", "test_32x32.mat"])
    files = {
        split: ["", f"{split}_32x32.mat", None]  # torchvision's own check off
        for split in SPLITS
    }
    monkeypatch.setattr(datasets.SVHN, "split_list", files)
    train, held_out, test = (
        data.load(f"svhn:{tmp_path}", split) for split in ("train", "validation", "test")
    )
    values = [d.images[:, 1, 2, 5].to(torch.int64) for d in (train, held_out, test)]
    assert sorted(torch.cat(values[:2]).tolist()) == list(range(50))
    assert values[2].tolist() == list(range(100, 120))
    assert torch.equal(test.labels, (values[2] - 100) % 10)
    assert test.images.shape == (20, 3, 32, 32)
    assert test.images.is_contiguous()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_colour_images_are_channel_first_and_not_transposed(name, tmp_path, monkeypatch):
    stored = np.arange(3 * 32 * 32, dtype=np.uint32).reshape(1, 3, 32, 32).astype(np.uint8)

    class Reader:  # what torchvision's readers offer: images N, H, W, C and lists
        def __init__(self, root, train, download):
            assert (Path(root), download) == (tmp_path, False)
            self.data = stored.repeat(20 if train else 10, 0).transpose(0, 2, 3, 1)
            self.targets = [0, 1] * (10 if train else 5)
            self.classes = ["cat", "dog"]

    monkeypatch.setattr(datasets, name.upper(), Reader)
    (tmp_path / "batch").write_bytes(b"")
    _pin(monkeypatch, name, tmp_path, ["batch"])
    dataset = data.load(f"{name}:{tmp_path}", "test")
    assert np.array_equal(dataset.images.numpy(), stored.repeat(10, 0))
    assert dataset.classes == ("cat", "dog")


@pytest.mark.skipif(not (SHARED / "cifar10-mini").is_dir(), reason="needs the shared data")
def test_real_cifar_files_are_read(tmp_path, monkeypatch):
    folder = datasets.CIFAR10.base_folder
    shutil.copytree(SHARED / "cifar10-mini" / folder, tmp_path / folder)
    _pin(monkeypatch, "cifar10", tmp_path, [f"{folder}/batches.meta"])
    for names in ("train_list", "test_list"):  # these files are cut: torchvision's check off
        listed = [[file, None] for file, _ in getattr(datasets.CIFAR10, names)]
        monkeypatch.setattr(datasets.CIFAR10, names, listed)
    meta = {**datasets.CIFAR10.meta, "md5": None}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    test = data.load(f"cifar10:{tmp_path}", "test")
    assert test.images.shape == (300, 3, 32, 32)
    assert test.classes[:2] == ("airplane", "automobile")
    first = datasets.CIFAR10(tmp_path, train=False)[0][0]
    assert np.array_equal(test.images[0].permute(1, 2, 0).numpy(), np.asarray(first))


@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="needs the shared data")
def test_real_mnist_is_unpacked_without_network_and_read(tmp_path):
    shutil.copytree(SHARED / "mnist", tmp_path, dirs_exist_ok=True)
    fetch("mnist", tmp_path, opener=None)
    test = data.load(f"mnist:{tmp_path}", "test")
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert test.images.shape == (10_000, 1, 28, 28)
    assert test.labels.bincount().tolist() == counts


@pytest.mark.parametrize(
    ("name", "hidden", "message"),
    [
        pytest.param("mnist", "torchvision", r'pip install "normlab\[lab\]"', id="torchvision"),
        pytest.param("svhn", "scipy", "svhn needs scipy to read .mat files", id="scipy"),
    ],
)
def test_missing_package_is_a_sentence(name, hidden, message, tmp_path, monkeypatch):
    (tmp_path / "train_32x32.mat").write_bytes(b"")
    _pin(monkeypatch, name, tmp_path, ["train_32x32.mat"])
    monkeypatch.setattr(datasets.SVHN, "split_list", {"train": ["", "train_32x32.mat", None]})
    for module in (hidden, f"{hidden}.io"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ImportError, match=message):
        data.load(f"{name}:{tmp_path}", "train")
