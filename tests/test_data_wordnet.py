"""ImageNet and Tiny ImageNet in the layouts they come in."""

import re
from pathlib import Path

import pytest
import torch

from normlab.lab import data
from normlab.lab.data import imagenet, tiny_imagenet
from normlab.lab.data.dataset import DataError

Image = pytest.importorskip("PIL.Image")

SHARED = Path(__file__).parents[2] / "shared" / "data"
CRANE, TENCH = "n02012849", "n01440764"


def _picture(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value,) * 3).save(path, "PNG")


def _train(root, below=""):
    for k, wnid in enumerate((TENCH, CRANE)):
        for j in range(2):
            _picture(root / "train" / wnid / below / f"{wnid}_{j}.JPEG", 10 * k + j)
    return root


def _flat(folder):
    for k in range(2):
        _picture(folder / f"ILSVRC2012_val_0000000{k}.JPEG", 100 + k)


def _in_folders(root):
    _train(root)
    _picture(root / "val" / CRANE / "a.JPEG", 100)
    _picture(root / "val" / TENCH / "b.JPEG", 101)


def _with_annotations(root):
    _flat(_train(root) / "val")
    rows = f"ILSVRC2012_val_00000000.JPEG\t{CRANE}\nILSVRC2012_val_00000001.JPEG\t{TENCH}\n"
    (root / "val" / "val_annotations.txt").write_text(rows)


def _as_tiny_imagenet(root):
    _train(root, "images")
    _flat(root / "val" / "images")
    rows = (
        f"ILSVRC2012_val_00000000.JPEG\t{CRANE}\t0\t31\t60\t60\n"
        f"ILSVRC2012_val_00000001.JPEG\t{TENCH}\t0\t0\t9\t9\n"
    )
    (root / "val" / "val_annotations.txt").write_text(rows)
    (root / "wnids.txt").write_text(f"{CRANE}\n{TENCH}\n")


def _as_kaggle(root):
    _flat(_train(root / "ILSVRC/Data/CLS-LOC") / "val")
    (root / "LOC_val_solution.csv").write_text(
        f"ImageId,PredictionString\nILSVRC2012_val_00000000,{CRANE} 85 1 499 272\n"
        f"ILSVRC2012_val_00000001,{TENCH} 1 1 9 9 {TENCH} 2 2 8 8 \n"
    )


def _as_lists(root):
    _flat(_train(root) / "val")
    rows = [f"{wnid}/{wnid}_{j}.JPEG {k}" for k, wnid in enumerate((TENCH, CRANE)) for j in (0, 1)]
    (root / "train_list.txt").write_text("\n".join(rows))
    (root / "val_list.txt").write_text(
        "val/ILSVRC2012_val_00000000.JPEG 1\nval/ILSVRC2012_val_00000001.JPEG 0\n"
    )


LAYOUTS = {
    "class folders": _in_folders,
    "val_annotations.txt": _with_annotations,
    "Tiny ImageNet": _as_tiny_imagenet,
    "Kaggle": _as_kaggle,
    "lists, from train/ and from the root": _as_lists,
}


def _greys(dataset):
    images = dataset.images[torch.arange(len(dataset))]
    return dict(zip(images[:, 0, 0, 0].tolist(), dataset.labels.tolist()))


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
def test_layout_is_read(tmp_path, make):
    make(tmp_path)
    train, judged, test = (
        imagenet.load(str(tmp_path), split) for split in ("train", "validation", "test")
    )
    assert _greys(train) == {0: 0, 1: 0, 10: 1, 11: 1}
    assert _greys(judged) == {100: 1, 101: 0}
    assert train.classes == judged.classes
    assert test is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("words.txt", f"{CRANE}\tcrane\nn00000001\tother\n{TENCH}\ttench, Tinca tinca\n"),
        ("LOC_synset_mapping.txt", f"{TENCH} tench, Tinca tinca\n{CRANE} crane\n"),
    ],
)
def test_classes_have_the_first_of_their_words(tmp_path, name, text):
    _in_folders(tmp_path)
    (tmp_path / name).write_text(text)
    assert imagenet.load(str(tmp_path), "train").classes == ("tench", "crane")


def test_classes_of_one_word_are_told_apart(tmp_path):
    _in_folders(tmp_path)
    (tmp_path / "words.txt").write_text(f"{TENCH}\tcrane, a machine\n{CRANE}\tcrane\n")
    expected = (f"crane ({TENCH})", f"crane ({CRANE})")
    assert imagenet.load(str(tmp_path), "validation").classes == expected


def test_without_validation_images_training_images_are_held_out(tmp_path):
    _train(tmp_path)
    held_out = data.load(f"imagenet:{tmp_path}", "validation")
    assert len(held_out) + len(data.load(f"imagenet:{tmp_path}", "train")) == 4


def _absent(root):
    root.rmdir()


def _no_train(root):
    _flat(root / "val")


def _class_lost(root):
    _as_tiny_imagenet(root)
    (root / "wnids.txt").write_text(f"{CRANE}\n{TENCH}\nn00000003\n")


def _empty_class(root):
    _in_folders(root)
    (root / "train" / "n00000003").mkdir()


def _unknown_folder(root):
    _in_folders(root)
    _picture(root / "val" / "n00000003" / "x.JPEG", 0)


def _no_labels(root):
    _flat(_train(root) / "val")


def _unknown_label(root):
    _with_annotations(root)
    with (root / "val" / "val_annotations.txt").open("a") as file:
        file.write("ILSVRC2012_val_00000000.JPEG\tn00000003\n")


def _annotation_cut_short(root):
    _with_annotations(root)
    with (root / "val" / "val_annotations.txt").open("a") as file:
        file.write("ILSVRC2012_val_000\n")


def _solution_cut_short(root):
    _as_kaggle(root)
    with (root / "LOC_val_solution.csv").open("a") as file:
        file.write("ILSVRC2012_val_00000001\n")


def _image_lost(root):
    _with_annotations(root)
    (root / "val" / "ILSVRC2012_val_00000001.JPEG").unlink()


def _list_without_label(root):
    _as_lists(root)
    with (root / "train_list.txt").open("a") as file:
        file.write("\nalone\n")


def _list_upwards(root):
    _as_lists(root)
    (root / "val_list.txt").write_text("val/../../x.JPEG 0\n")


BAD = {
    "61: no such folder": (_absent, "set is not a folder; expected imagenet, unpacked"),
    "no training images": (_no_train, "set has no folder train; expected train/<class>/…"),
    "half unpacked": (_class_lost, "train has 2 classes, .*wnids.txt 3; 'n00000003' is only in"),
    "64: class without images": (_empty_class, "train/n00000003 has no images; unpack it again"),
    "66: class only in val": (_unknown_folder, "val/n00000003 is no class of .*train"),
    "flat val without labels": (_no_labels, "val has no folders of classes, and there is none of"),
    "66: label of no class": (_unknown_label, "label 'n00000003' of .*00.JPEG is not a class"),
    "annotation cut short": (_annotation_cut_short, "val_annotations.txt:3: expected an image, a"),
    "solution cut short": (_solution_cut_short, "LOC_val_solution.csv:4: expected an image, a com"),
    "image lost": (_image_lost, "00000001.JPEG does not exist; 1 of 2 images listed are not bel"),
    "list without label": (_list_without_label, "train_list.txt:5: expected a path and a label"),
    "106: list leads out": (_list_upwards, "val_list.txt:1: path 'val/../../x.JPEG' leads out"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_folder_is_explained(tmp_path, make, message):
    root = tmp_path / "set"
    root.mkdir()
    make(root)
    with pytest.raises(DataError, match=message):
        for split in ("train", "validation"):
            imagenet.load(str(root), split)


@pytest.mark.parametrize("source", [imagenet, tiny_imagenet])
def test_address_without_folder_is_said(source):
    name = source.__name__.rpartition(".")[2]
    with pytest.raises(DataError, match=re.escape(f"{name} needs a folder: {name}:FOLDER")):
        source.load("", "train")


@pytest.mark.skipif(not (SHARED / "tiny-imagenet-10").is_dir(), reason="needs the shared data")
def test_real_tiny_imagenet_loads():
    address = f"tiny_imagenet:{SHARED / 'tiny-imagenet-10'}"
    train, judged = (data.load(address, split, limit=300) for split in ("train", "validation"))
    assert train.images.shape == judged.images.shape == (300, 3, 64, 64)
    assert train.classes == judged.classes
    assert judged.classes[:3] == ("goldfish", "king penguin", "German shepherd")
    assert (len(train.labels.unique()), len(judged.labels.unique())) == (10, 10)
