"""Networks judged under shifted images, with re-estimated statistics."""

import copy

import pytest
import torch
from torch import nn

import normlab
from normlab.lab import shift
from normlab.lab.data.dataset import Dataset
from normlab.lab.tasks.classification import Input

CPU = torch.device("cpu")
SIZES = {"one pixel": (1, 1), "one row": (1, 9), "odd": (7, 5), "32 pixels": (32, 32)}


def images(count: int, seed: int) -> Dataset:
    """Two classes that differ in brightness."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    pixels = torch.randint(60, 100, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return Dataset(pixels + 80 * labels.reshape(-1, 1, 1, 1).to(torch.uint8), labels, ("a", "b"))


class Bright(nn.Module):
    """Class by brightness, where the norm knows the mean brightness."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.norm = normlab.norm(norm, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.norm(x).mean((1, 2, 3))
        return torch.stack([-z, z], 1)


def judged(norm: str, which: str, num_train: int = 40, num_validation: int = 50):
    seen, held_out = images(num_train, 0), images(num_validation, 1)
    model = Bright(norm).eval()
    rows = shift.errors(model, seen, held_out, Input.of(seen), CPU, which)
    return [(row["statistics"], row["images"], row["error"]) for row in rows]


@pytest.mark.parametrize("which", shift.CORRUPTIONS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_corrupted_images_have_their_shape_and_type(which, size):
    x = torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8)
    y = shift.corrupt(x, torch.arange(3), which)
    assert (y.shape, y.dtype) == (x.shape, torch.uint8)
    assert torch.equal(x, y) == (size == (1, 1) and which in ("blur", "contrast"))


@pytest.mark.parametrize("which", shift.CORRUPTIONS)
def test_corruption_depends_on_image_and_index_alone(which):
    x = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    whole = shift.corrupt(x, torch.arange(6), which)
    part = torch.tensor([4, 1])
    assert torch.equal(shift.corrupt(x[part], part, which), whole[part])


def test_corruptions_are_as_strong_as_they_say():
    x = torch.full((64, 1, 32, 32), 100, dtype=torch.uint8)
    x[..., 16:] = 140
    at = torch.arange(64)
    noise = shift.corrupt(x, at, "noise").float() - x.float()
    assert noise.std().item() == pytest.approx(26, rel=0.02)
    assert abs(noise.mean().item()) < 0.5
    assert shift.corrupt(x, at, "dark").unique().tolist() == [30, 42]
    assert shift.corrupt(x, at, "contrast").unique().tolist() == [114, 126]
    x[...] = 0
    x[:, :, 16, 16] = 255
    spread = shift.corrupt(x, at, "blur")[0, 0].double() / 255
    away = (torch.arange(32) - 16) ** 2
    assert spread.sum().item() == pytest.approx(1, abs=0.03)  # rounded to 1/255 in 25 pixels
    assert (spread.sum(0) * away).sum().item() == pytest.approx(0.8**2, rel=0.1)


def test_images_of_no_images_are_none():
    nothing = torch.empty(0, 3, 8, 8, dtype=torch.uint8)
    assert all(not len(shift.corrupt(nothing, torch.arange(0), w)) for w in shift.CORRUPTIONS)


def test_statistics_of_few_shifted_images_mend_batch_norm():
    """In the dark every image is in the class of dark ones, half of them wrongly."""
    rows = judged("batch", "dark")
    assert rows[0] == ("running", 0, pytest.approx(50, abs=10))
    assert [row[:2] for row in rows[1:]] == [("reestimated", k) for k in (1, 3, 10)]
    assert rows[-1][2] == 0.0


def test_group_norm_has_its_plain_error_only():
    assert [row[:2] for row in judged("group:3", "dark")] == [("running", 0)]


def test_without_a_shift_statistics_are_those_of_training_images():
    rows = judged("batch", "none")
    assert [row[1] for row in rows] == [0, 1, 3, 10, 30]
    assert rows[-1][2] == 0.0


def test_images_that_give_statistics_are_not_judged(monkeypatch):
    seen, held_out, fetched = images(8, 0), images(40, 1), []

    def reestimated(model, source, chosen, rest, *where):
        ours = {bytes(source.images[i].numpy()) for i in chosen}
        fetched.append(ours)
        assert not ours & {bytes(image.numpy()) for image in rest.images}
        return 0.0

    monkeypatch.setattr(shift, "_reestimated", reestimated)
    shift.errors(Bright("batch"), seen, held_out, Input.of(seen), CPU, "noise")
    assert [len(ours) for ours in fetched] == [1, 1, 1, 3, 3, 3, 10, 10]
    assert len(set.union(*(fetched[6:]))) == 20  # disjoint


def test_model_is_left_as_it_was():
    seen, model = images(40, 0), Bright("batch").train()
    before = copy.deepcopy(model.state_dict())
    shift.errors(model, seen, seen, Input.of(seen), CPU, "all")
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_all_shifts_come_one_after_the_other():
    seen = images(8, 0)
    rows = shift.errors(Bright("batch"), seen, seen, Input.of(seen), CPU, "all")
    found = dict.fromkeys(row["shift"] for row in rows)
    assert tuple(found) == shift.SHIFTS
    alone = shift.errors(Bright("batch"), seen, seen, Input.of(seen), CPU, "blur")
    assert [row for row in rows if row["shift"] == "blur"] == alone


def test_one_value_per_channel_gives_no_statistics():
    class Pooled(Bright):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.mean((2, 3), keepdim=True))

    seen = images(8, 0)
    rows = shift.errors(Pooled("batch").eval(), seen, seen, Input.of(seen), CPU, "none")
    assert [row["error"] for row in rows][1] is None
    assert rows[2]["error"] is not None


class OnDemand:
    """Images that are fetched, as those of files."""

    def __init__(self, images: torch.Tensor) -> None:
        self._images, self.shape = images, images.shape

    def __getitem__(self, indices: torch.Tensor) -> torch.Tensor:
        return self._images[indices]


def test_fetched_images_give_the_same_as_those_in_memory():
    seen, held_out = images(8, 0), images(20, 1)
    lazy = Dataset(OnDemand(held_out.images), held_out.labels, held_out.classes)
    model, input = Bright("batch").eval(), Input.of(seen)
    found = [shift.errors(model, seen, data, input, CPU, "noise") for data in (held_out, lazy)]
    assert found[0] == found[1]


def test_unknown_shift_names_those_there_are():
    with pytest.raises(shift.ShiftError, match="'fog'; there are noise, blur, contrast, dark"):
        shift.corrupt(images(1, 0).images, torch.arange(1), "fog")
