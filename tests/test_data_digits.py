"""The digits that come with normlab, plain and relit."""

import hashlib
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from normlab.lab import data
from normlab.lab.data import digits, relit_digits
from normlab.lab.data.dataset import DataError


def test_digits_equal_the_copy_of_scikit_learn():
    published = pytest.importorskip("sklearn.datasets").load_digits()
    values, labels = digits.original()
    assert np.array_equal(values, published.images)
    assert np.array_equal(labels, published.target)


def test_digits_file_is_small():
    assert Path(digits.__file__).with_name("digits.npz").stat().st_size <= 45_000


def test_digits_are_scaled_so_that_16_is_white():
    values, labels = digits.original()
    both = [digits.load("", split) for split in ("train", "validation")]
    pixels = torch.cat([part.images for part in both])
    assert [len(part) for part in both] == [1347, 450]
    assert pixels.shape == (1797, 1, 8, 8)
    back = np.rint(pixels[:, 0].numpy() * (16 / 255)).astype(np.uint8)
    rows = lambda x, y: sorted(bytes([k]) + v.tobytes() for v, k in zip(x, y, strict=True))  # noqa: E731
    assert rows(back, torch.cat([part.labels for part in both]).tolist()) == rows(values, labels)


@pytest.mark.parametrize("source", [digits, relit_digits], ids=["digits", "relit_digits"])
def test_embedded_source_has_no_test_split_and_takes_nothing(source):
    assert source.load("", "test") is None
    with pytest.raises(DataError, match="takes nothing after a colon, got 'x'"):
        source.load("x", "train")


@pytest.mark.parametrize(
    ("split", "count", "digest"),
    [
        ("train", 4096, "b1b8655d384b7d77ca64feebee3a7a6af5d4ac1af569dfe0a61337d8e8a409fd"),
        ("validation", 900, "eb1395d92c099ff01429bba1602c2fbe5f003f1e66a606c8a8e91eaf75f1af9d"),
    ],
)
def test_relit_digits_are_the_same_for_everyone(split, count, digest):
    dataset = data.load("relit_digits", split)
    assert dataset.images.shape == (count, 1, 12, 12)
    assert hashlib.sha256(dataset.images.numpy().tobytes()).hexdigest() == digest


def test_relit_digits_take_less_than_a_second():
    start = time.process_time()
    relit_digits.load("", "train")
    assert time.process_time() - start < 1


def test_relit_digits_of_training_and_validation_are_different_digits(monkeypatch):
    used = {}
    relight = relit_digits._relight
    for split in ("train", "validation"):

        def note(values, seed, split=split):
            used[split] = {v.tobytes() for v in values}
            return relight(values, seed)

        monkeypatch.setattr(relit_digits, "_relight", note)
        relit_digits.load("", split)
    assert (len(used["train"]), len(used["validation"])) == (1347, 450)
    assert not used["train"] & used["validation"]


def test_light_has_the_stated_brightness_and_noise():
    black = relit_digits._relight(np.zeros((2000, 8, 8), np.uint8), 0)
    low, high = relit_digits.RANGE
    light = black / 255 * (high - low) + low  # brightness + noise
    brightness = light.mean((1, 2))
    assert abs(brightness.mean()) < 4 * (2 / 12**0.5) / 2000**0.5
    assert 0.99 < np.abs(brightness).max() < 1.05
    assert abs((light - brightness[:, None, None]).std() / relit_digits.NOISE - 1) < 0.02


def test_light_has_the_stated_contrast_sizes_and_places(monkeypatch):
    monkeypatch.setattr(relit_digits, "NOISE", 0.0)
    monkeypatch.setattr(relit_digits, "BRIGHTNESS", (0.0, 0.0))
    full = relit_digits._relight(np.full((2000, 8, 8), 16, np.uint8), 0)
    low, high = relit_digits.RANGE
    light = full / 255 * (high - low) + low
    contrast = light.max((1, 2))
    assert 0.29 < contrast.min() < 0.32
    assert 0.98 < contrast.max() < 1.01
    lit = light > 0.1
    sizes = lit.any(2).sum(1)
    assert np.array_equal(sizes, lit.any(1).sum(1))
    assert sorted(set(sizes)) == [8, 9, 10, 11, 12]
    places = {(size, row) for size, row in zip(sizes, lit.any(2).argmax(1), strict=True)}
    assert places == {(size, row) for size in range(8, 13) for row in range(13 - size)}


@pytest.mark.parametrize("size", range(8, 13))
def test_digits_are_resized_as_torch_does(size):
    weights = torch.from_numpy(relit_digits._resize_weights(size)[:size]) / (2 * size)
    image = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(image[None, None], (size, size), mode="bilinear")
    assert torch.allclose(weights @ image @ weights.T, expected[0, 0], atol=1e-12)
