"""Own arrays, in HDF5 and NumPy files: the layouts they may have."""

import re

import numpy as np
import pytest
import torch
from files import IMAGES, LABELS, write_hdf5, write_npz

from normlab.lab import data
from normlab.lab.data import hdf5, npz
from normlab.lab.data.dataset import DataError

h5py = pytest.importorskip("h5py")

LAYOUTS = {
    "N, H, W, C": IMAGES,
    "N, C, H, W": IMAGES.transpose(0, 3, 1, 2).copy(),
    "N, H, W": IMAGES[..., 0].copy(),
    "N, H, W, 1": IMAGES[..., :1].copy(),
}


@pytest.mark.parametrize("images", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("kind", ["hdf5", "npz"])
def test_any_layout_becomes_channel_first(tmp_path, kind, images):
    file = tmp_path / f"x.{kind}"
    {"hdf5": write_hdf5, "npz": write_npz}[kind](file, images)
    dataset = {"hdf5": hdf5, "npz": npz}[kind].load(str(file), "train")
    channels = 3 if images.shape[1:] != (6, 5) and images.shape[-1] != 1 else 1
    expected = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2)[:, :channels].copy())
    assert torch.equal(dataset.images, expected)
    assert dataset.images.is_contiguous()
    assert torch.equal(dataset.labels, torch.from_numpy(LABELS))
    assert dataset.classes == ("0", "1", "2", "3")


def test_more_images_than_are_handled_at_a_time_keep_their_order(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (1300, 2, 5, 3), dtype=np.uint8)
    write_npz(tmp_path / "x.npz", images, np.zeros(1300, int))
    loaded = npz.load(str(tmp_path / "x.npz"), "train").images
    assert np.array_equal(loaded.numpy(), images.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("kind", ["hdf5", "npz"])
def test_splits_share_the_classes_of_train(tmp_path, kind):
    for split, rows in (("train", 10), ("test", 3)):
        if kind == "hdf5":
            write_hdf5(tmp_path / "x.h5", IMAGES[:rows], LABELS[:rows], f"{split}/")
        else:
            write_npz(tmp_path / f"{split}.npz", IMAGES[:rows], LABELS[:rows])
    address = f"hdf5:{tmp_path / 'x.h5'}" if kind == "hdf5" else f"npz:{tmp_path}"
    test = data.load(address, "test")
    assert (len(test), len(test.classes)) == (3, 4)
    assert len(data.load(address, "train")) == 8
    assert len(data.load(address, "validation")) == 2


def test_classes_may_be_named(tmp_path):
    names = ["ant", "bee", "cat", "dog", "eel"]
    write_npz(tmp_path / "x.npz", classes=names)
    write_hdf5(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file.attrs["classes"] = names
    assert npz.load(str(tmp_path / "x.npz"), "train").classes == tuple(names)
    assert hdf5.load(str(tmp_path / "x.h5"), "train").classes == tuple(names)


@pytest.mark.parametrize("images", LAYOUTS.values(), ids=LAYOUTS)
def test_images_that_do_not_fit_stay_in_the_file(tmp_path, monkeypatch, images):
    write_hdf5(tmp_path / "x.h5", images, chunks=True, compression="gzip", shuffle=True)
    eager = hdf5.load(str(tmp_path / "x.h5"), "train").images
    monkeypatch.setattr(hdf5, "IN_MEMORY", 100)
    lazy = hdf5.load(str(tmp_path / "x.h5"), "train").images
    assert isinstance(lazy, hdf5._Stored)
    assert tuple(lazy.shape) == eager.shape
    order = torch.tensor([7, 0, 7, 3])
    assert torch.equal(lazy[order], eager[order])


@pytest.mark.parametrize("kind", ["hdf5", "npz"])
def test_address_without_file_is_said(kind):
    with pytest.raises(DataError, match=re.escape(f"{kind} needs a file")):
        data.load(kind, "train")
