"""Bad NumPy files, and what is said about them."""

import zipfile

import numpy as np
import pytest
from files import IMAGES, LABELS, snapshot, write_npz

from normlab.lab.data import npz
from normlab.lab.data.dataset import DataError


def _write(content):
    return lambda path: path.write_bytes(content)


def _objects(path):
    images = np.empty(2, object)
    images[:] = [IMAGES[0], IMAGES[1]]
    np.savez(path, images=images, labels=LABELS[:2])


def _damaged_npz(path):
    write_npz(path)
    content = bytearray(path.read_bytes())
    content[400] ^= 0xFF
    path.write_bytes(content)


def _damaged_directory(path):
    content = write_npz(path).read_bytes()
    path.write_bytes(content.replace(b"PK\x01\x02", b"PK\x01\xff"))


def _bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("labels.npy", b"")
        file.writestr("images.npy", b"")
    content = path.read_bytes()
    size = (2**31).to_bytes(4, "little")
    start = content.index(b"PK\x01\x02")  # the sizes claimed in the list of contents
    path.write_bytes(content[: start + 24] + size + content[start + 28 :])


BAD_NPZ = {
    "no file": (lambda path: None, "x.npz does not exist; expected an .npz file or a folder of"),
    "text": (_write(b"<html><body>"), r"x.npz is not an .npz file \(first bytes b'<html><b'\)"),
    "truncated": (
        lambda path: path.write_bytes(write_npz(path).read_bytes()[:500]),
        "x.npz is not an .npz file .*or cut short",
    ),
    "damaged": (_damaged_npz, "x.npz: array 'images' cannot be read .*CRC"),
    "damaged list of contents": (_damaged_directory, "x.npz is damaged .*copy it again"),
    "S01: objects": (_objects, "array 'images' cannot be read .*allow_pickle=False.*plain array"),
    "no labels": (
        lambda path: np.savez(path, images=IMAGES, y=LABELS),
        "x.npz has no array 'labels'; there are images, y; expected images and labels",
    ),
    "claims 2 GB": (_bomb, "x.npz: claims 2,147,483,648 bytes but stores 2"),
    "labels of another length": (
        lambda path: write_npz(path, labels=LABELS[:4]),
        "10 images but 4 la",
    ),
    "float images": (
        lambda path: write_npz(path, IMAGES / 255),
        "images are float64, expected uint8",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD_NPZ.values(), ids=BAD_NPZ)
def test_bad_npz_is_explained(tmp_path, make, message):
    path = tmp_path / "x.npz"
    make(path)
    before = snapshot(tmp_path)
    with pytest.raises(DataError, match=message):
        npz.load(str(path), "train")
    assert snapshot(tmp_path) == before


def test_folder_without_training_file_is_said(tmp_path):
    write_npz(tmp_path / "test.npz")
    message = "has no train.npz; name the files train, validation, test"
    with pytest.raises(DataError, match=message):
        npz.load(str(tmp_path), "test")
