"""Judging a run: the whole set, evaluation mode, and predictions in files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, f1_score

from normlab.lab import data, evaluate, prediction
from normlab.lab.compute import Compute
from normlab.lab.data.dataset import DataError
from normlab.lab.experiment import Experiment
from normlab.lab.runs import Run
from normlab.lab.tasks import classification
from normlab.lab.train import train

CPU, ON_CPU = torch.device("cpu"), Compute(device="cpu")
EXPERIMENT = Experiment(
    data="digits", norm="batch", num_train=400, num_validation=100, batch_size=16, epochs=2
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    run = Run.create(tmp_path_factory.mktemp("runs"), EXPERIMENT)
    train(run, compute=ON_CPU)
    return run


@pytest.fixture(scope="module")
def validation() -> data.Dataset:
    return data.load("digits", "validation", limit=100)


def test_evaluation_agrees_with_training_and_covers_the_whole_set(run):
    scores, classes = evaluate.evaluate(run, ["validation", "train"], "last", CPU)
    last = [e for e in run.events() if e["event"] == "epoch"][-1]
    assert scores["validation"]["error"] == pytest.approx(last["validation_error"], abs=1e-4)
    assert scores["validation"]["num_images"] == 100
    assert scores["train"]["num_images"] == 400
    assert len(classes) == 10


def test_missing_split_names_those_there_are(run):
    with pytest.raises(DataError, match="no test split; there are train and validation"):
        evaluate.evaluate(run, ["test"], "best", CPU)


def test_tensorflow_defect_evaluation_does_not_depend_on_the_batch(run, validation):
    model, input = evaluate.load_model(run, "best", CPU)
    whole = evaluate.predict(model, validation.images, input, CPU)
    alone = [
        classification.predict(model, validation.images[torch.tensor([i])], input, CPU)
        for i in range(8)
    ]
    torch.testing.assert_close(torch.cat(alone), whole[:8], atol=1e-5, rtol=1e-4)


def test_tensorflow_defect_dropout_is_off_in_evaluation(tmp_path, validation):
    run = Run.create(tmp_path, EXPERIMENT.replace(model="convnet", epochs=1, image_size=16))
    train(run, compute=ON_CPU)
    scores = [evaluate.evaluate(run, ["validation"], "best", CPU)[0] for _ in range(2)]
    assert scores[0] == scores[1]


def test_scores_equal_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(200, 5, generator=generator).softmax(1)
    labels = torch.randint(0, 5, (200,), generator=generator)
    predicted = probabilities.argmax(1)
    scores = classification.scores(probabilities, labels, 5)
    assert scores["confusion"] == confusion_matrix(labels, predicted).tolist()
    for average in ("micro", "macro"):
        expected = 100 * f1_score(labels, predicted, average=average)
        assert scores[f"{average}_f1"] == pytest.approx(expected, abs=1e-4)
    assert scores["accuracy"] + scores["error"] == 100


def write_pixels(path, images: torch.Tensor) -> None:
    np.savetxt(path, images.flatten(1).numpy(), fmt="%d", delimiter=",")


def test_csv_of_pixels_becomes_one_class_index_a_line(run, validation, tmp_path):
    write_pixels(tmp_path / "in.csv", validation.images)
    assert prediction.predict_file(
        run, tmp_path / "in.csv", tmp_path / "out.csv", "last", False, CPU
    ) == len(validation)
    lines = (tmp_path / "out.csv").read_text().split()
    wrong = sum(int(a) != b for a, b in zip(lines, validation.labels.tolist(), strict=True))
    last = [e for e in run.events() if e["event"] == "epoch"][-1]
    assert 100 * wrong / len(lines) == pytest.approx(last["validation_error"])


def test_full_predictions_name_image_class_and_probability(run, validation, tmp_path):
    write_pixels(tmp_path / "in.csv", validation.images[:3])
    prediction.predict_file(run, tmp_path / "in.csv", tmp_path / "out.csv", "best", True, CPU)
    header, *rows = (tmp_path / "out.csv").read_text().splitlines()
    assert header == "image,index,class,probability"
    assert [r.split(",")[0] for r in rows] == ["0", "1", "2"]
    assert all(0.1 <= float(r.split(",")[3]) <= 1 for r in rows)


def test_folder_of_pictures_is_predicted_like_its_pixels(run, validation, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(5):
        Image.fromarray(validation.images[i, 0].numpy()).save(pictures / f"{i}.png")
    write_pixels(tmp_path / "in.csv", validation.images[:5])
    for source, out in (("pictures", "a.csv"), ("in.csv", "b.csv")):
        prediction.predict_file(run, tmp_path / source, tmp_path / out, "best", True, CPU)
    a, b = (
        [r.split(",")[1:] for r in (tmp_path / n).read_text().split()[1:]]
        for n in ("a.csv", "b.csv")
    )
    assert a == b
    assert (tmp_path / "a.csv").read_text().splitlines()[1].startswith("0.png,")


def test_missing_source_is_said_and_nothing_is_written(run, tmp_path):
    with pytest.raises(DataError, match=r"none\.csv: no such file or folder; give a CSV"):
        prediction.predict_file(run, tmp_path / "none.csv", tmp_path / "o.csv", "best", False, CPU)
    assert not (tmp_path / "o.csv").exists()


def test_input_travels_with_the_weights(run):
    state = json.loads(next((run.path / "checkpoints" / "best").glob("*/state.json")).read_text())
    assert state["input"]["shape"] == [1, 8, 8]
    assert len(state["input"]["mean"]) == 1
