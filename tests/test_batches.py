"""Order and augmentation depend on seed, epoch and index, and on nothing else."""

import pytest
import torch

from normlab.lab.data.batches import batches, num_batches
from normlab.lab.data.dataset import DataError, Dataset

IMAGES = torch.arange(10 * 1 * 16 * 16).remainder(251).to(torch.uint8).reshape(10, 1, 16, 16)
DATA = Dataset(IMAGES, torch.arange(10), tuple("abcdefghij"))


def epoch(**options) -> list:
    return list(batches(DATA, 3, **{"seed": 0, "epoch": 0, "augment": "crop_flip", **options}))


def test_an_epoch_visits_each_image_once_in_whole_batches():
    visited = torch.cat([b.indices for b in epoch()])
    assert len(visited) == 9
    assert len(visited.unique()) == 9


def test_labels_belong_to_their_images():
    for batch in epoch(augment="none"):
        assert torch.equal(batch.labels, batch.indices)
        assert torch.equal(batch.images, IMAGES[batch.indices])


def test_starting_in_the_middle_gives_the_rest():
    for late, batch in zip(epoch(start=1), epoch()[1:], strict=True):
        assert torch.equal(late.images, batch.images)


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}], ids=str)
def test_other_seed_or_epoch_gives_another_order(change):
    assert not torch.equal(epoch(**change)[0].indices, epoch()[0].indices)


def test_augmentation_is_the_images_own_whatever_its_batch():
    by_index = {}
    for size in (2, 5):
        for batch in batches(DATA, size, seed=0, epoch=0, augment="crop_flip"):
            for index, image in zip(batch.indices.tolist(), batch.images):
                assert torch.equal(by_index.setdefault(index, image), image)


def test_crops_are_windows_of_the_padded_image_mirrored_or_not():
    padded = torch.nn.functional.pad(IMAGES, (2, 2, 2, 2))
    kinds = set()
    for batch in epoch():
        for index, image in zip(batch.indices.tolist(), batch.images):
            windows = padded[index].unfold(1, 16, 1).unfold(2, 16, 1)[0]  # (y, x, 16, 16)
            straight = (windows == image[0]).all(-1).all(-1).any()
            mirrored = (windows.flip(-1) == image[0]).all(-1).all(-1).any()
            assert straight or mirrored
            kinds.add(bool(straight))
    assert kinds == {True, False}


def test_crop_alone_never_mirrors():
    padded = torch.nn.functional.pad(IMAGES, (2, 2, 2, 2))
    for batch in epoch(augment="crop"):
        for index, image in zip(batch.indices.tolist(), batch.images):
            windows = padded[index].unfold(1, 16, 1).unfold(2, 16, 1)[0]
            assert (windows == image[0]).all(-1).all(-1).any()


def test_set_smaller_than_a_batch_is_refused():
    with pytest.raises(DataError, match="10 training images do not fill one batch of 11"):
        num_batches(10, 11)
