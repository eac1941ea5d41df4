"""Confusions: recorded after training, read without trust, and summed over seeds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from normlab.lab import train
from normlab.lab.analysis import analyse, read
from normlab.lab.compute import Compute
from normlab.lab.data.dataset import Dataset
from normlab.lab.experiment import Experiment
from normlab.lab.report import confusion as report
from normlab.lab.runs import Run
from normlab.lab.tasks import confusion
from normlab.lab.tasks.classification import Input

CPU = torch.device("cpu")
CLASSES = ["cat", "dog"]


class Brightness(torch.nn.Module):
    """Says class 1 of bright images, the surer the brighter."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        light = x.mean((1, 2, 3))
        return torch.stack([-light, light], 1)


def four_images() -> tuple[Dataset, Input]:
    images = torch.tensor([0, 100, 200, 255], dtype=torch.uint8).reshape(4, 1, 1, 1)
    dataset = Dataset(images, torch.tensor([0, 1, 0, 0]), ("dark", "bright"))
    return dataset, Input((128.0,), (64.0,), (1, 1, 1), dataset.classes)


def test_matrix_and_surest_mistakes_are_counted() -> None:
    dataset, input = four_images()
    found = confusion.confusion(Brightness(), dataset, input, CPU)
    assert found["counts"] == [[1, 2], [1, 0]]
    assert [m[:3] for m in found["mistakes"]] == [[3, 0, 1], [2, 0, 1], [1, 1, 0]]
    light = (255 - 128) / 64
    assert found["mistakes"][0][3] == pytest.approx(
        float(torch.sigmoid(torch.tensor(2 * light))), abs=1e-4
    )


def test_network_is_left_as_it_was() -> None:
    model = Brightness().train()
    confusion.confusion(model, *four_images(), CPU)
    assert model.training


def test_very_many_classes_are_left_out() -> None:
    dataset, _ = four_images()
    input = Input((0.0,), (1.0,), (1, 1, 1), tuple(map(str, range(201))))
    assert confusion.confusion(Brightness(), dataset, input, CPU) == {}


@dataclass
class FakeRun:
    experiment: Experiment
    event: dict[str, Any]

    @property
    def path(self) -> Path:
        return Path("runs") / self.experiment.name

    @property
    def status(self) -> dict[str, Any]:
        return {"state": "finished"}

    def events(self) -> list[dict[str, Any]]:
        epoch = {"event": "epoch", "samples": 64, "validation_error": 9.0}
        return [epoch, {"event": "confusion", **self.event}]


def run(seed: int, counts: Any, mistakes: Any = (), **fields: Any) -> FakeRun:
    event = {"classes": CLASSES, "counts": counts, "mistakes": list(mistakes)}
    return FakeRun(Experiment(seed=seed, **fields), event)


@pytest.mark.parametrize(
    "event",
    [
        pytest.param({}, id="nothing recorded"),
        pytest.param({"classes": CLASSES, "counts": [[1, 2]]}, id="a row is missing"),
        pytest.param({"classes": CLASSES, "counts": [[1, 2], [3]]}, id="ragged"),
        pytest.param({"classes": CLASSES, "counts": [[1, 2], [3, -1]]}, id="negative"),
        pytest.param({"classes": CLASSES, "counts": [[1, 2], [3, 1.5]]}, id="no count"),
        pytest.param({"classes": [], "counts": []}, id="no class"),
    ],
)
def test_damaged_matrices_are_left_out(event: dict[str, Any]) -> None:
    found = [FakeRun(Experiment(), event)]
    assert read(found[0]).confusion is None
    assert report.section(analyse(found), []) is None


@pytest.mark.parametrize("mistake", [[1, 0], [1, 0, 2, 0.5], [1, 0, 1, "x"], "text", [-1, 0, 1, 1]])
def test_damaged_mistakes_are_left_out(mistake: Any) -> None:
    found = read(run(0, [[1, 2], [3, 4]], [mistake])).confusion
    assert found is not None
    assert found.mistakes == ()


def test_counts_are_summed_over_seeds() -> None:
    a = analyse([run(0, [[8, 2], [5, 5]]), run(1, [[9, 1], [3, 7]])])
    (matrix,) = report.matrices(a)
    assert matrix.rows == (("cat", "17", "3"), ("dog", "8", "12"))
    assert report.pairs(a).rows == (
        ("group", "32", "dog", "cat", "8", "40.0"),
        ("group", "32", "cat", "dog", "3", "15.0"),
    )
    assert report.sentences(a) == ["Most often dog is taken for cat."]


def test_images_that_most_runs_get_wrong_come_first() -> None:
    counts = [[1, 2], [3, 4]]
    a = analyse(
        [
            run(0, counts, [[7, 0, 1, 0.9], [3, 1, 0, 0.8]]),
            run(1, counts, [[3, 1, 0, 0.7]]),
        ]
    )
    assert [row[1:] for row in report.images(a).rows] == [
        ("3", "dog", "cat", "2 of 2"),
        ("7", "cat", "dog", "1 of 2"),
    ]


def test_a_class_without_images_is_no_division_by_zero() -> None:
    a = analyse([run(0, [[0, 0], [1, 0]])])
    assert report.pairs(a).rows == (("group", "32", "dog", "cat", "1", "100.0"),)


def test_a_trained_run_records_its_confusions(tmp_path: Path) -> None:
    e = Experiment(num_train=64, num_validation=32, epochs=1, model="convnet")
    made = Run.create(tmp_path, e)
    train.train(made, compute=Compute(device="cpu"))
    found, (epoch,) = read(made).confusion, read(made).epochs
    assert found is not None
    right = sum(row[i] for i, row in enumerate(found.counts))
    assert sum(map(sum, found.counts)) == 32
    assert 100 * (1 - right / 32) == pytest.approx(epoch.validation_error)
    assert len(found.mistakes) == 32 - right
