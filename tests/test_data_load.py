"""What `load` adds to every source: held-out images, limits, resizing, and reading once."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from normlab.lab import data
from normlab.lab.data.dataset import DataError


@pytest.fixture
def numbered(tmp_path):
    """100 images sorted by class; the pixels of image k are all k."""
    file = tmp_path / "numbered.npz"
    images = np.arange(100, dtype=np.uint8)[:, None, None].repeat(6, 1).repeat(8, 2)
    np.savez(file, images=images, labels=np.arange(100) // 10)
    return f"npz:{file}"


def _numbers(dataset):
    return dataset.images[:, 0, 0, 0].tolist()


def test_held_out_images_and_the_rest_are_all_images_once(numbered):
    train, held_out = (data.load(numbered, split) for split in ("train", "validation"))
    assert (len(train), len(held_out)) == (80, 20)
    assert sorted(_numbers(train) + _numbers(held_out)) == list(range(100))
    assert [k // 10 for k in _numbers(held_out)] == held_out.labels.tolist()


def test_held_out_images_are_the_same_in_whatever_order_they_are_asked_for(numbered):
    first = _numbers(data.load(numbered, "validation"))
    data.load(numbered, "train")
    assert _numbers(data.load(numbered, "validation")) == first  # kept from reading train
    assert _numbers(data.load(numbered, "validation")) == first  # read again


@pytest.mark.parametrize(
    ("fraction", "held_out"), [(0.001, 1), (0.5, 50), (0.999, 99)], ids=["least 1", "half", "most"]
)
def test_both_parts_have_images_at_any_fraction(numbered, fraction, held_out):
    assert len(data.load(numbered, "validation", validation=fraction)) == held_out
    assert len(data.load(numbered, "train", validation=fraction)) == 100 - held_out


def test_validation_split_of_the_source_is_used(tmp_path):
    for split, value in (("train", 1), ("validation", 2)):
        images = np.full((4, 2, 2), value, np.uint8)
        np.savez(tmp_path / f"{split}.npz", images=images, labels=[0, 1, 0, 1])
    train, held_out = (data.load(f"npz:{tmp_path}", s) for s in ("train", "validation"))
    assert (_numbers(train), _numbers(held_out)) == ([1] * 4, [2] * 4)


def test_limit_draws_from_all_classes_of_a_sorted_file(numbered):
    few = data.load(numbered, "train", limit=20)
    assert len(few) == 20
    assert len(few.labels.unique()) >= 6
    assert _numbers(few)[:5] == _numbers(data.load(numbered, "train", limit=5))
    assert len(data.load(numbered, "train", limit=1000)) == 80


def test_reading_train_then_validation_reads_the_file_once(numbered, monkeypatch):
    from normlab.lab.data import npz

    read = []
    load = npz.load
    monkeypatch.setattr(npz, "load", lambda what, split: read.append(split) or load(what, split))
    data.load(numbered, "train")
    data.load(numbered, "validation")
    assert read == ["train", "validation"]  # the second is asked for, and is not there


def test_missing_test_split_names_those_there_are(numbered):
    message = f"{numbered} has no test split; there are train and validation"
    with pytest.raises(DataError, match=re.escape(message)):
        data.load(numbered, "test")


def test_unknown_split_names_those_there_are(numbered):
    with pytest.raises(DataError, match="'val' is no split; there are train, validation, test"):
        data.load(numbered, "val")


def test_one_image_cannot_be_split(tmp_path):
    np.savez(tmp_path / "one.npz", images=np.zeros((1, 2, 2), np.uint8), labels=[0])
    with pytest.raises(DataError, match="1 image cannot be split"):
        data.load(f"npz:{tmp_path / 'one.npz'}", "train")


def test_resized_images_equal_interpolation_in_float(numbered):
    stored = data.load(numbered, "train")
    resized = data.load(numbered, "train", image_size=5)
    exact = torch.nn.functional.interpolate(
        stored.images.double(), (5, 5), mode="bilinear", antialias=True
    )
    assert resized.images.shape == (80, 1, 5, 5)
    assert resized.images.dtype == torch.uint8
    assert resized.images.is_contiguous()
    assert (resized.images - exact).abs().max() <= 1  # rounded once for each direction


def test_images_that_do_not_fit_are_resized_as_they_are_fetched(numbered, monkeypatch):
    eager = data.load(numbered, "train", image_size=4).images
    monkeypatch.setattr(data, "IN_MEMORY", 100)
    lazy = data.load(numbered, "train", image_size=4).images
    assert not isinstance(lazy, torch.Tensor)
    assert tuple(lazy.shape) == (80, 1, 4, 4)
    assert torch.equal(lazy[torch.tensor([79, 3, 3])], eager[[79, 3, 3]])


def test_digest_tells_other_labels_and_other_pixels(numbered):
    found = data.load(numbered, "train", validation=0.2)
    assert found.digest() == replace(found, images=found.images.clone()).digest()
    labels, images = found.labels.clone(), found.images.clone()
    labels[7] += 1
    images[7, 0, 2, 3] += 1
    others = {replace(found, labels=labels).digest(), replace(found, images=images).digest()}
    assert len(others - {found.digest()}) == 2
