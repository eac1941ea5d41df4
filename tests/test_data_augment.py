"""Random parts and colours: distributed as torchvision's, computed as fb.resnet.torch's."""

import itertools
import math

import numpy as np
import pytest
import torch

from normlab.lab.data import augment
from normlab.lab.data.augment import _Draws, augmentation
from normlab.lab.data.batches import Batches
from normlab.lab.data.dataset import DataError, Dataset

RANDOM = np.random.default_rng(0)
IMAGES = torch.from_numpy(RANDOM.integers(0, 256, (12, 3, 20, 16), dtype=np.uint8))
LUMA = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)


def drawn(count, seed=0, epoch=0):
    return [_Draws(seed, epoch, index) for index in range(count)]


def test_parts_have_8_to_100_percent_of_the_area_and_3_to_4_by_4_to_3():
    boxes = [d.place(300, 400) for d in drawn(2000)]
    areas = np.array([(b.right - b.left) * (b.bottom - b.top) / 120_000 for b in boxes])
    ratios = np.array([(b.right - b.left) / (b.bottom - b.top) for b in boxes])
    assert 0.078 < areas.min() < 0.1
    assert 0.95 < areas.max() <= 1
    assert 0.745 < ratios.min() < 0.76
    assert 1.32 < ratios.max() < 1.34
    assert all(0 <= b.left < b.right <= 400 and 0 <= b.top < b.bottom <= 300 for b in boxes)


def test_parts_are_distributed_as_torchvisions():
    """Means of area, aspect and place over 1,500 draws of each, within 5 standard errors."""
    transforms = pytest.importorskip("torchvision.transforms.v2")
    ours = np.array([d.place(300, 400) for d in drawn(1500)])
    torch.manual_seed(0)
    crop, image = transforms.RandomResizedCrop(8), torch.empty(1, 300, 400)
    given = [crop.make_params([image]) for _ in range(1500)]
    theirs = np.array(
        [[g["left"], g["top"], g["left"] + g["width"], g["top"] + g["height"]] for g in given]
    )
    error = np.sqrt((ours.var(0) + theirs.var(0)) / 1500)
    assert (abs(ours.mean(0) - theirs.mean(0)) < 5 * error).all()
    assert (abs(ours.std(0) - theirs.std(0)) < 5 * error).all()


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        pytest.param(3, 5000, (2498, 0, 2502, 3), id="78: 3 by 5000"),
        pytest.param(5000, 3, (0, 2498, 3, 2502), id="78: 5000 by 3"),
        pytest.param(1, 1, (0, 0, 1, 1), id="78: 1 by 1"),
    ],
)
def test_picture_that_no_draw_fits_gives_its_middle(height, width, box):
    boxes = {tuple(d.place(height, width)) for d in drawn(50)}
    assert box in boxes
    assert all(r > left and b > top for left, top, r, b in boxes)


def test_half_of_the_images_are_mirrored():
    assert abs(sum(d.mirrored for d in drawn(4000)) - 2000) < 5 * math.sqrt(1000)


def test_mirrored_parts_are_the_parts_mirrored(monkeypatch):
    straight = augmentation("resized_crop", IMAGES, 0)
    one, _ = straight(torch.arange(12), 0)
    flips = [d.mirrored for d in drawn(12)]
    assert {True, False} == set(flips)

    class Never(_Draws):
        def __init__(self, *place):
            super().__init__(*place)
            self.mirrored = False

    monkeypatch.setattr(augment, "_Draws", Never)
    plain, _ = straight(torch.arange(12), 0)
    for image, other, mirrored in zip(one, plain, flips):
        assert torch.equal(image, other.flip(-1) if mirrored else other)


def test_draws_are_the_images_own_whatever_its_batch():
    dataset = Dataset(IMAGES, torch.arange(12), tuple("abcdefghijkl"))
    seen = {}
    for size in (3, 4):
        source = Batches(dataset, size, seed=1, augment="imagenet")
        for place in source.places((0, 0), 1):
            batch = source[place]
            for index, image, colour in zip(batch.indices.tolist(), batch.images, batch.colour):
                before = seen.setdefault(index, (image, colour))
                assert torch.equal(before[0], image)
                assert torch.equal(before[1], colour)


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"index": 1}], ids=str)
def test_other_seed_epoch_or_image_gives_other_draws(change):
    here = {"seed": 0, "epoch": 0, "index": 0}
    one, other = _Draws(**here), _Draws(**{**here, **change})
    assert one.place(300, 400) != other.place(300, 400)
    assert (one._factors != other._factors).all()


def test_both_augmentations_cut_the_same_parts():
    parts, none = augmentation("resized_crop", IMAGES, 0)(torch.arange(12), 5)
    same, colour = augmentation("imagenet", IMAGES, 0)(torch.arange(12), 5)
    assert torch.equal(parts, same)
    assert none is None
    assert (colour.shape, colour.dtype) == ((12, 3, 4), torch.float32)


def as_fb_resnet_torch(x, draws):
    """datasets/transforms.lua on an image (3, H, W) in 0..1: ColorJitter, then Lighting."""

    def blend(image, other, alpha):
        return alpha * image + (1 - alpha) * other

    def grey(image):
        return torch.einsum("c,chw->hw", LUMA, image).expand(3, -1, -1)

    steps = [
        lambda image, alpha: blend(image, torch.zeros_like(image), alpha),
        lambda image, alpha: blend(image, grey(image).mean(), alpha),
        lambda image, alpha: blend(image, grey(image), alpha),
    ]
    for step in draws._order:
        x = steps[step](x, draws._factors[step])
    vectors = torch.tensor(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    ).double()
    values = torch.tensor([0.2175, 0.0188, 0.0045]).double()
    light = (vectors * torch.from_numpy(draws._light) * values).sum(1)
    return x + light[:, None, None]


def test_colours_are_those_of_the_papers_recipe():
    images, colour = augmentation("imagenet", IMAGES, 7)(torch.arange(12), 3)
    for index, (image, change) in enumerate(zip(images.double(), colour.double())):
        draws = _Draws(7, 3, index)
        expected = 255 * as_fb_resnet_torch(image / 255, draws)
        ours = torch.einsum("dc,chw->dhw", change[:, :3], image) + change[:, 3, None, None]
        assert (ours - expected).abs().max() < 1e-3  # of 255; the map is float32


def test_colours_change_in_every_order_and_within_their_range():
    draws = drawn(600)
    assert {d._order for d in draws} == set(itertools.permutations(range(3)))
    factors = np.array([d._factors for d in draws])
    assert 0.6 <= factors.min() < 0.61
    assert 1.39 < factors.max() <= 1.4
    lights = np.array([d._light for d in draws])
    assert abs(lights.std() - 0.1) < 5 * 0.1 / math.sqrt(2 * lights.size)


def test_grey_images_change_colour_as_three_equal_channels():
    grey = IMAGES[:, :1]
    _, colour = augmentation("imagenet", grey, 0)(torch.arange(12), 0)
    _, same = augmentation("imagenet", grey.expand(-1, 3, -1, -1).contiguous(), 0)(
        torch.arange(12), 0
    )
    assert torch.equal(colour, same)


def test_images_of_four_channels_have_no_colours_to_change():
    four = IMAGES[:, :1].expand(-1, 4, -1, -1)
    with pytest.raises(DataError, match="must have 1 or 3 channels, these have 4"):
        augmentation("imagenet", four, 0)
    assert augmentation("resized_crop", four, 0)(torch.arange(2), 0)[0].shape == (2, 4, 20, 16)
