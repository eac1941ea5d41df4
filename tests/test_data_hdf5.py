"""HDF5 files of one group per example, bad ones of either layout, and what is said about them."""

import numpy as np
import pytest
from files import IMAGES, LABELS, snapshot, write_hdf5

from normlab.lab.data import hdf5
from normlab.lab.data.dataset import DataError

h5py = pytest.importorskip("h5py")


def _examples(path, ids="abc", classes=3):
    with h5py.File(path, "w") as file:
        for k, name in enumerate(ids):
            file[f"{name}/image"] = IMAGES[k]
            file[f"{name}/label"] = np.eye(classes)[k % classes]
    return path


def test_one_group_per_example_is_read_in_the_order_of_the_list_beside(tmp_path):
    file = _examples(tmp_path / "data.hy")
    assert hdf5.load(str(file), "train").labels.tolist() == [0, 1, 2]
    (tmp_path / "id.txt").write_text("c\na\n")
    dataset = hdf5.load(str(file), "train")
    assert dataset.labels.tolist() == [2, 0]
    assert np.array_equal(dataset.images.numpy(), IMAGES[[2, 0]].transpose(0, 3, 1, 2))
    assert dataset.classes == ("0", "1", "2")
    assert hdf5.load(str(file), "test") is None


def _write(content):
    return lambda path: path.write_bytes(content)


def _truncated(path):
    write_hdf5(path, np.zeros((500, 6, 5, 3), np.uint8), np.zeros(500, int))
    path.write_bytes(path.read_bytes()[:2000])


def _edited(edit, images=IMAGES, labels=LABELS, **options):
    def make(path):
        write_hdf5(path, images, labels, **options)
        with h5py.File(path, "a") as file:
            edit(file, path.parent)

    return make


def _replace_images(file, value):
    del file["images"]
    file["images"] = value


def _external_link(file, folder):
    write_hdf5(folder / "other.h5")
    _replace_images(file, h5py.ExternalLink("other.h5", "/images"))


def _external_train(file, folder):
    write_hdf5(folder / "other.h5", prefix="g/")
    del file["images"], file["labels"]
    file["train"] = h5py.ExternalLink("other.h5", "/g")


def _external_storage(file, folder):
    (folder / "secret.bin").write_bytes(bytes(IMAGES.size))
    del file["images"]
    outside = [(str(folder / "secret.bin"), 0, IMAGES.size)]
    file.create_dataset("images", IMAGES.shape, np.uint8, external=outside)


def _virtual(file, folder):
    write_hdf5(folder / "other.h5")
    layout = h5py.VirtualLayout(IMAGES.shape, np.uint8)
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "images", IMAGES.shape)
    del file["images"]
    file.create_virtual_dataset("images", layout)


def _plugin_filter(file, _):
    del file["images"]
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk(IMAGES.shape)
    properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
    space = h5py.h5s.create_simple(IMAGES.shape)
    h5py.h5d.create(file.id, b"images", h5py.h5t.NATIVE_UINT8, space, properties)


def _claims_10_tb(file, _):
    del file["images"]
    file.create_dataset("images", (10, 10**6, 10**6, 1), np.uint8, chunks=(1, 1000, 1000, 1))


def _group_for_array(file, _):
    del file["images"]
    file.create_group("images/parts")


def _bad_labels(labels, images=IMAGES):
    return lambda path: write_hdf5(path, images, labels)


def _labels_beyond_train(path):
    write_hdf5(path, prefix="train/")
    write_hdf5(path, IMAGES, LABELS + 1, prefix="validation/")


def _label_beyond_names(path):
    write_hdf5(path)
    with h5py.File(path, "a") as file:
        file.attrs["classes"] = ["ant", "bee"]


def _examples_edited(edit):
    def make(path):
        _examples(path)
        with h5py.File(path, "a") as file:
            edit(file, path.parent)

    return make


def _image_of_other_size(file, _):
    del file["b/image"]
    file["b/image"] = IMAGES[0][:4]


def _two_ones(file, _):
    file["b/label"][...] = [1, 1, 0]


def _listed_but_absent(_, folder):
    (folder / "id.txt").write_text("a\n../b\n")


BAD_HDF5 = {
    "93: text": (
        _write(b"<html><body>"),
        r"x.h5 is not an HDF5 file \(first bytes b'<html><b'\); check the path",
    ),
    "93: empty file": (_write(b""), r"x.h5 is not an HDF5 file \(first bytes b''\)"),
    "93: no file": (lambda path: None, "x.h5 is not a file; expected an HDF5 file: hdf5:FILE"),
    "94: truncated": (_truncated, "x.h5 cannot be opened as HDF5: it is cut short; copy it again"),
    "95: no labels": (_bad_labels(None), "x.h5: no 'labels' in /; there are 'images'"),
    "95: no images": (_bad_labels(LABELS, None), "x.h5: no 'images' in /; there are 'labels'"),
    "95: other names": (
        lambda path: h5py.File(path, "w").create_group("pictures").file.close(),
        "x.h5: no 'images' in /; there are 'pictures'",
    ),
    "95: nothing": (lambda path: h5py.File(path, "w").close(), "no 'images' in /; it is empty"),
    "95: many names are cut short": (
        lambda path: _make_keys(path, 20),
        "there are 'k00', 'k01', 'k02', 'k03', 'k04', 'k05', 'k06', 'k07', …$",
    ),
    "96: float images": (
        _bad_labels(LABELS, (IMAGES / 255).astype(np.float32)),
        r"images: images are float32, expected uint8 .*save \(images \* 255\).round\(\)",
    ),
    "96: 16-bit images": (
        _bad_labels(LABELS, IMAGES.astype(np.uint16)),
        "images are uint16, expected uint8 from 0 to 255; save them scaled",
    ),
    "96: two axes": (
        _bad_labels(LABELS, IMAGES[:, :, 0, 0]),
        r"images have shape \(10, 6\), expected",
    ),
    "96: two channels": (
        _bad_labels(LABELS, IMAGES[..., :2]),
        r"shape \(10, 6, 5, 2\), neither axis 1 nor axis 3 is the channels",
    ),
    "96: channels undecidable": (
        _bad_labels(LABELS, IMAGES[:, :3]),
        r"shape \(10, 3, 5, 3\), both axis 1 and axis 3 could be the channels",
    ),
    "96: height 0": (_bad_labels(LABELS, IMAGES[:, :0]), r"shape \(10, 0, 5, 3\), expected"),
    "96: fewer labels": (
        _bad_labels(LABELS[:7]),
        "labels: 10 images but 7 labels; expected as many",
    ),
    "96: no rows": (_bad_labels(LABELS[:0], IMAGES[:0]), r"no images \(0 rows\)"),
    "96: one-hot labels": (
        _bad_labels(np.eye(4, dtype=int)[LABELS]),
        r"labels have shape \(10, 4\), expected \(N,\); for one-hot labels save labels.argmax",
    ),
    "97: external link": (_edited(_external_link), "'images' in / is a link to .*not followed"),
    "97: group by external link": (
        _edited(_external_train),
        "'train' in / is a link to .*other.h5",
    ),
    "97: external storage": (
        _edited(_external_storage),
        "x.h5: images keeps its values in other files, which are not read",
    ),
    "97: virtual": (_edited(_virtual), "x.h5: images keeps its values in other files"),
    "98: dangling soft link": (
        _edited(lambda file, _: _replace_images(file, h5py.SoftLink("/nowhere"))),
        "'images' in / is a link to b'/nowhere'; links are not followed, copy the array",
    ),
    "99: filter of a plugin": (
        _edited(_plugin_filter),
        "images is compressed with HDF5 filter 32015, which needs a plugin; plugins are not loaded",
    ),
    "101: label too large": (_label_beyond_names, "label 3 is out of range, expected 0 to 1"),
    "101: label too large for train": (
        _labels_beyond_train,
        "x.h5: validation/labels: label 4 is out of range, expected 0 to 3",
    ),
    "101: negative label": (_bad_labels(LABELS - 1), "label -1 is out of range, expected 0 to"),
    "101: huge label": (_bad_labels(LABELS * 10**12), "label 3000000000000 is out of range"),
    "101: NaN": (
        _bad_labels(np.where(LABELS == 3, np.nan, LABELS)),
        "labels are float64, expected whole numbers; save class numbers with",
    ),
    "102: group instead of an array": (
        _edited(_group_for_array),
        "images is a group, expected an array; there are 'parts'",
    ),
    "102: claims 10 TB": (_edited(_claims_10_tb), "claims 10,000,000,000,000 bytes but stores 0;"),
    "examples: image of another size": (
        _examples_edited(_image_of_other_size),
        r"x.h5: b has an image \(4, 5, 3\) .*but a \(6, 5, 3\) .*all must have one shape",
    ),
    "examples: label not one-hot": (_examples_edited(_two_ones), r"b/label is not one-hot: \[1"),
    "examples: list names an absent one": (
        _examples_edited(_listed_but_absent),
        r"id.txt:2: x.h5 has no example '../b'",
    ),
}


def _make_keys(path, count):
    with h5py.File(path, "w") as file:
        for k in range(count):
            file.create_group(f"k{k:02}")


@pytest.mark.parametrize(("make", "message"), BAD_HDF5.values(), ids=BAD_HDF5)
def test_bad_hdf5_is_explained(tmp_path, make, message):
    path = tmp_path / "x.h5"
    make(path)
    before = snapshot(tmp_path)
    with pytest.raises(DataError, match=message):
        for split in ("train", "validation"):
            hdf5.load(str(path), split)
    assert snapshot(tmp_path) == before


def test_100_file_open_for_writing_by_another_program_is_said(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    path = write_hdf5(tmp_path / "x.h5")
    message = "another program has it open for writing; close it there first"
    with path.open("rb+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # as the HDF5 library does
        with pytest.raises(DataError, match=message):
            hdf5.load(str(path), "train")


def test_S08_damaged_bytes_raise_only_our_error(tmp_path):
    """Every 13th byte of the structure flipped, one at a time."""
    good = write_hdf5(
        tmp_path / "x.h5", chunks=True, compression="gzip", fletcher32=True
    ).read_bytes()
    refused = 0
    for position in range(0, len(good), 13):
        damaged = bytearray(good)
        damaged[position] ^= 0xFF
        (tmp_path / "y.h5").write_bytes(damaged)
        try:
            hdf5.load(str(tmp_path / "y.h5"), "train")
        except DataError:
            refused += 1
    assert refused > 10


def test_missing_package_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ImportError, match=r'hdf5 data needs h5py: pip install "normlab\[lab\]"'):
        hdf5.load(str(tmp_path / "x.h5"), "train")
