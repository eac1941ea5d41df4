"""Images of several sources, and networks with statistics for each."""

import numpy as np
import pytest
import torch
from torch import nn

from normlab import norms
from normlab.lab import data, domains, evaluate, models, train
from normlab.lab.compute import Compute
from normlab.lab.data import joined
from normlab.lab.data.dataset import DataError, Dataset
from normlab.lab.experiment import Experiment
from normlab.lab.runs import Run

X = torch.randn(6, 3, 8, 8)


def of(count: int, *, size: int = 4, classes: tuple[str, ...] = ("a", "b"), value: int = 0):
    images = torch.full((count, 1, size, size), value, dtype=torch.uint8)
    images += torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    return Dataset(images, torch.arange(count) % len(classes), classes)


class Lazy:
    def __init__(self, images: torch.Tensor) -> None:
        self._images, self.shape = images, images.shape

    def __getitem__(self, indices: torch.Tensor) -> torch.Tensor:
        return self._images[indices]


@pytest.fixture
def sources(monkeypatch):
    """Sources one and two with training images only, three with a validation split, too."""
    made = {
        "one": {"train": of(3)},
        "two": {"train": of(5, classes=("b", "c", "d"), value=100)},
        "three": {"train": of(3), "validation": of(2)},
        "large": {"train": of(3, size=8)},
    }

    def load(source, split):
        return made[source].get(split)

    monkeypatch.setattr(joined, "_load", load)
    return made


def test_classes_of_all_sources_are_told_apart(sources):
    found = joined.load("one+two", "train")
    assert found.classes == ("one a", "one b", "two b", "two c", "two d")
    assert found.labels.tolist() == [0, 1, 0, 2, 3, 4, 2, 3]
    assert found.domains == (0, 0, 1, 1, 1)
    assert domains.of(found.domains, found.labels).tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert found.images[:, 0, 0, 0].tolist() == [0, 1, 2, 100, 101, 102, 103, 104]


def test_images_of_files_are_fetched_where_they_are(sources):
    whole = joined.load("one+two", "train").images
    two = sources["two"]["train"]
    sources["two"]["train"] = Dataset(Lazy(two.images), two.labels, two.classes)
    lazy = joined.load("one+two", "train").images
    at = torch.tensor([7, 0, 3, 2, 4])
    assert tuple(lazy.shape) == tuple(whole.shape)
    assert torch.equal(lazy[at], whole[at])
    assert lazy[at[:0]].shape == (0, 1, 4, 4)


def test_a_split_that_no_source_has_is_none(sources):
    assert joined.load("one+two", "validation") is None


@pytest.mark.parametrize(
    ("what", "split", "message"),
    [
        ("one", "train", "name two sources or more: joined:mnist"),
        ("one+", "train", "name two sources or more"),
        ("one+two+one", "train", "one is there twice"),
        ("one+three", "validation", "one has no validation split, and three has"),
        ("one+large", "train", "must be of one shape, got one 1×4×4, large 1×8×8"),
    ],
)
def test_sources_that_cannot_be_joined_are_refused(sources, what, split, message):
    with pytest.raises(DataError, match=message):
        joined.load(what, split)


@pytest.fixture
def address(tmp_path):
    """Dark and bright images of two classes each."""
    for name, value in (("dark", 50), ("bright", 200)):
        labels = np.arange(40) % 2
        images = np.full((40, 8, 8), value, np.uint8)
        images[:, :4] += (20 * labels[:, None, None]).astype(np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels)
    return f"joined:npz:{tmp_path}/dark.npz+npz:{tmp_path}/bright.npz"


def test_sources_are_read_by_their_addresses(address):
    train = data.load(address, "train", limit=50, image_size=6)
    held_out = data.load(address, "validation", image_size=6)
    assert (len(train), len(held_out), train.images.shape[2:]) == (50, 16, (6, 6))
    assert train.domains == held_out.domains == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("norm", "order"),
    [
        ("domain_batch:2", "domain"),
        ("domain_batch:2", None),
        ("batch", "domain"),
        ("group:8", None),
    ],
)
def test_networks_train_on_two_domains(address, tmp_path, norm, order):
    e = Experiment(
        data=address, model="cifar_resnet:8", norm=norm, order=order, batch_size=8, epochs=2,
        learning_rate_batch=8,
    )  # fmt: skip
    run = Run.create(tmp_path / "runs", e)
    assert train.train(run, compute=Compute(device="cpu", workers=0)) == "finished"
    events = {event["event"]: event for event in run.events()}
    assert ("statistics" in events) == (norm == "batch")
    assert np.array(events["confusion"]["counts"]).sum() == 16
    found, _ = evaluate.evaluate(run, ["validation"], "last", torch.device("cpu"))
    assert found["validation"]["error"] == pytest.approx(events["epoch"]["validation_error"])


def test_unknown_source_is_named():
    with pytest.raises(LookupError, match='"mnits": no module .*did you mean mnist'):
        data.load("joined:digits+mnits", "train")


def test_selected_images_keep_their_domains(sources):
    found = joined.load("one+two", "train").select(torch.tensor([6, 1]))
    assert domains.of(found.domains, found.labels).tolist() == [1, 0]


def test_every_image_meets_the_statistics_of_its_domain():
    model = models.build("cifar_resnet:8", 4, norm="domain_batch:2").eval()
    for m in model.modules():
        if isinstance(m, norms.DomainBatchNorm):
            m.domain1.running_mean.fill_(0.5)
    which = torch.tensor([1, 0, 0, 1, 0, 1])
    apart = []
    for number in (0, 1):
        norms.set_domain(model, number)
        apart.append(model(X))
    expected = torch.where(which[:, None] == 1, apart[1], apart[0])
    torch.testing.assert_close(domains.forward(model, X, which), expected)
    assert not torch.allclose(*apart)


def test_training_moves_only_the_domain_s_statistics_and_weights():
    model = nn.Sequential(norms.DomainBatchNorm(3, domains=2))
    domains.forward(model, X, torch.ones(6, dtype=torch.int64)).sum().backward()
    assert (model[0].num_batches_tracked, model[0].domain1.num_batches_tracked) == (0, 1)
    assert model[0].weight.grad is None
    assert model[0].domain1.bias.grad is not None


def test_other_networks_are_just_called():
    calls = []
    model = nn.BatchNorm2d(3)
    assert domains.forward(model, X, None, call=lambda x: calls.append(len(x)) or x) is X
    assert calls == [6]


def test_no_images_give_no_logits():
    model = models.build("cifar_resnet:8", 4, norm="domain_batch:2").eval()
    norms.set_domain(model, 0)
    nothing = torch.tensor([], dtype=torch.int64)
    assert domains.forward(model, X[:0], nothing).shape == (0, 4)


def test_what_is_not_said_is_of_the_first_domain_once_begun():
    model = models.build("cifar_resnet:8", 4, norm="domain_batch:2").eval()
    domains.begin(model)
    domains.forward(model, X, torch.ones(6, dtype=torch.int64))
    assert torch.equal(model(X), domains.forward(model, X, torch.zeros(6, dtype=torch.int64)))


def test_images_of_unknown_domain_are_refused():
    model = models.build("cifar_resnet:8", 4, norm="domain_batch:2")
    with pytest.raises(
        DataError,
        match="domain_batch has statistics for each of several domains, and of these images",
    ):
        domains.forward(model, X, None)


def test_a_domain_that_the_norms_do_not_have_is_refused():
    model = models.build("cifar_resnet:8", 4, norm="domain_batch:2")
    with pytest.raises(LookupError, match="domain 2: .* has 0, 1"):
        domains.forward(model, X, torch.full((6,), 2))
