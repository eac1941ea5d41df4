"""Order and augmentation depend on seed, epoch and index, and on nothing else."""

import pytest
import torch

from normlab.lab.data.batches import Batches, InOrder, fetch, num_batches
from normlab.lab.data.dataset import DataError, Dataset

IMAGES = torch.arange(10 * 1 * 16 * 16).remainder(251).to(torch.uint8).reshape(10, 1, 16, 16)
DATA = Dataset(IMAGES, torch.arange(10), tuple("abcdefghij"))


def epoch(*, size=3, number=0, start=0, **options) -> list:
    source = Batches(DATA, size, **{"seed": 0, "augment": "crop_flip", **options})
    return [source[place] for place in source.places((number, start), number + 1)]


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


@pytest.mark.parametrize("change", [{"seed": 1}, {"number": 1}], ids=str)
def test_other_seed_or_epoch_gives_another_order(change):
    assert not torch.equal(epoch(**change)[0].indices, epoch()[0].indices)


def test_augmentation_is_the_images_own_whatever_its_batch():
    by_index = {}
    for size in (2, 5):
        for batch in epoch(size=size):
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


def test_every_batch_follows_from_its_place():
    source = Batches(DATA, 3, seed=0, augment="crop_flip")
    for number, batch in reversed(list(enumerate(epoch()))):
        source[7, 1]  # something else in between
        for one, other in zip(source[0, number][:3], batch[:3]):
            assert torch.equal(one, other)


def test_recorded_experiments_see_what_they_saw():
    """Order and crops are drawn as when the first runs were recorded."""
    batch = Batches(DATA, 4, seed=3, augment="crop_flip")[2, 1]
    assert batch.indices.tolist() == [6, 0, 2, 9]
    assert [int(image.sum()) for image in batch.images] == [27266, 27492, 29085, 29723]


def test_places_are_all_from_the_start_to_the_last_epoch():
    source = Batches(DATA, 3, seed=0, augment="none")
    assert len(source) == 3
    assert list(source.places((1, 2), 3)) == [(1, 2), (2, 0), (2, 1), (2, 2)]
    assert list(source.places((3, 0), 3)) == []


def test_batch_beyond_the_epoch_is_no_batch():
    with pytest.raises(IndexError, match="batch 3 of an epoch of 3 batches"):
        Batches(DATA, 3, seed=0, augment="none")[0, 3]


@pytest.mark.parametrize(
    "parts",
    [[slice(0, 3), slice(3, 4)], [torch.tensor([0, 2]), torch.tensor([1, 3])]],
    ids=["slices", "indices"],
)
@pytest.mark.parametrize("augment", ["crop_flip", "imagenet"])
def test_processes_that_share_a_batch_fetch_all_of_it(parts, augment):
    how = {"seed": 0, "augment": augment}
    whole = Batches(DATA, 4, **how)[1, 0]
    shares = [Batches(DATA, 4, part=part, **how)[1, 0] for part in parts]
    indices = torch.cat([share.indices for share in shares]).tolist()
    assert sorted(indices) == sorted(whole.indices.tolist())
    images = dict(zip(indices, torch.cat([share.images for share in shares])))
    for index, image in zip(whole.indices.tolist(), whole.images):
        assert torch.equal(images[index], image)


MANY = Dataset(torch.zeros(40, 1, 2, 2).byte(), torch.tensor([0] * 17 + [1] * 3 + [2] * 20), ())


def test_batches_of_one_class_each_hold_whole_batches_of_every_class():
    source = Batches(MANY, 4, seed=0, augment="none", order="class")
    batches = [source[0, number] for number in range(len(source))]
    assert [len(batch.labels.unique()) for batch in batches] == [1] * 9
    assert torch.cat([b.labels for b in batches]).bincount().tolist() == [16, 0, 20]
    assert len(torch.cat([b.indices for b in batches]).unique()) == 36


def test_batches_of_one_class_are_in_another_order_each_epoch():
    source = Batches(MANY, 4, seed=0, augment="none", order="class")
    labels = [[int(source[e, n].labels[0]) for n in range(9)] for e in range(2)]
    assert labels[0] != labels[1]
    assert sorted(labels[0]) == sorted(labels[1])
    assert source[0, 0].indices.tolist() != list(range(4))


def test_classes_smaller_than_a_batch_are_refused():
    message = 'order "class": no class fills a batch of 21, the largest has 20 images'
    with pytest.raises(DataError, match=message):
        Batches(MANY, 21, seed=0, augment="none", order="class")


def test_batches_of_one_domain_each():
    both = Dataset(MANY.images, MANY.labels, tuple("abc"), domains=(0, 1, 1))
    source = Batches(both, 5, seed=0, augment="none", order="domain")
    domains = [(source[0, n].labels > 0).unique().tolist() for n in range(len(source))]
    assert sorted(domains) == [[False]] * 3 + [[True]] * 4


def test_batches_by_domain_need_domains():
    with pytest.raises(DataError, match='order "domain": these images have one domain; join'):
        Batches(MANY, 4, seed=0, augment="none", order="domain")


class Damaged:
    """Images of which some cannot be read."""

    shape = IMAGES.shape

    def __init__(self, *bad: int) -> None:
        self.bad = set(bad)

    def __getitem__(self, indices: torch.Tensor) -> torch.Tensor:
        for index in indices.tolist():
            if index in self.bad:
                raise DataError(f"{index}.jpg cannot be read")
        return IMAGES[indices]


def _damaged(*bad: int) -> Dataset:
    return Dataset(Damaged(*bad), DATA.labels, DATA.classes)


def test_F10_unreadable_image_stops_with_its_name():
    source = Batches(_damaged(4), 10, seed=0, augment="none")
    with pytest.raises(DataError, match="4.jpg cannot be read"):
        source[0, 0]


@pytest.mark.parametrize("augment", ["none", "crop_flip", "imagenet"])
def test_F10_unreadable_image_is_replaced_by_the_next_and_reported(augment):
    how = {"seed": 0, "augment": augment}
    good = Batches(DATA, 10, **how)[0, 0]
    batch = Batches(_damaged(4, 5, 9), 10, skip_bad=True, **how)[0, 0]
    in_place = {4: 6, 5: 6, 9: 0}
    expected = [in_place.get(i, i) for i in good.indices.tolist()]
    assert batch.indices.tolist() == batch.labels.tolist() == expected
    rows = [good.indices.tolist().index(i) for i in expected]
    assert torch.equal(batch.images, good.images[rows])
    assert sorted(batch.skipped) == [
        f"{bad}.jpg cannot be read; image {other} is in its place"
        for bad, other in in_place.items()
    ]


def test_F10_set_without_any_readable_image_stops():
    source = Batches(_damaged(*range(10)), 2, seed=0, augment="none", skip_bad=True)
    with pytest.raises(DataError, match=r"10 images in a row cannot be read; the first: \d.jpg"):
        source[0, 0]


def test_F10_judging_leaves_unreadable_images_out_and_reports_them():
    source = InOrder(_damaged(4, 8, 9), skip_bad=True)
    batches = [source[place] for place in source.places(4)]
    assert [b.indices.tolist() for b in batches] == [[0, 1, 2, 3], [5, 6, 7], []]
    assert batches[1].skipped == ("4.jpg cannot be read; left out",)
    assert batches[2].images.shape == (0, 1, 16, 16)
    with pytest.raises(DataError, match="4.jpg"):
        fetch(_damaged(4), torch.arange(10))
