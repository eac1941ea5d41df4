"""Judge a trained run: always on the whole set, always in evaluation mode."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from normlab.lab import checkpoint, data, models
from normlab.lab.data.dataset import DataError, Dataset, Images
from normlab.lab.runs import Run
from normlab.lab.tasks import classification
from normlab.lab.tasks.classification import Input
from normlab.lab.weights import load_weights

_PIXELS = 2**17  # per batch: 128 images of 32 × 32


@torch.inference_mode()
def measure(
    model: nn.Module, dataset: Dataset, input: Input, device: torch.device
) -> tuple[float, float]:
    """Mean loss and error in percent over a data set."""
    was_training = model.training
    model.eval()
    total, wrong = torch.zeros((), dtype=torch.float64), 0
    for indices in _chunks(dataset.images):
        labels = dataset.labels[indices].to(device)
        logits = model(input.prepare(dataset.images[indices], device))
        total += classification.loss(logits, labels).cpu().double() * len(indices)
        wrong += classification.num_wrong(logits, labels)
    model.train(was_training)
    return float(total) / len(dataset), 100 * wrong / len(dataset)


def load_model(run: Run, which: str, device: torch.device) -> tuple[nn.Module, Input]:
    """The network of a run with its weights, and how images enter it.

    Args:
        which: "best", by validation error, or "last".

    Raises:
        CheckpointError: there are none, or only damaged ones.
    """
    folder = run.path / "checkpoints" / which
    tensors, state, path = checkpoint.load(folder)
    input = Input(**{k: _tuples(v) for k, v in state["input"].items()})
    e = run.experiment
    model = models.build(
        e.model, len(input.classes), norm=e.norm, norm_batch_size=e.norm_batch_size,
        strength=e.strength,
    )  # fmt: skip
    weights = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    load_weights(model, weights, str(path))
    return model.to(device).eval(), input


def evaluate(
    run: Run, splits: Iterable[str], which: str, device: torch.device
) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
    """Scores of a run on each split, see `classification.scores`, and the names of the classes."""
    model, input = load_model(run, which, device)
    e = run.experiment
    found = {}
    for split in splits:
        limit = {"train": e.num_train, "validation": e.num_validation}.get(split)
        dataset = data.load(
            e.data, split, image_size=e.image_size, validation=e.validation, limit=limit
        )
        if dataset.classes != input.classes:
            raise DataError(
                f"{e.data}: the classes have changed since training, from "
                f"{', '.join(input.classes)} to {', '.join(dataset.classes)}; train again"
            )
        probabilities = predict(model, dataset.images, input, device)
        found[split] = classification.scores(probabilities, dataset.labels, len(input.classes))
    return found, input.classes


def predict(
    model: nn.Module,
    images: Images,
    input: Input,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Class probabilities (N, classes) of images, in batches.

    Args:
        progress: called with the number of images done.
    """
    parts = []
    for indices in _chunks(images):
        parts.append(classification.predict(model, images[indices], input, device))
        if progress:
            progress(int(indices[-1]) + 1)
    return torch.cat(parts) if parts else torch.empty(0, len(input.classes))


def _chunks(images: Images) -> tuple[Tensor, ...]:
    """Indices of all images, in batches of a bounded number of pixels."""
    num, _, height, width = images.shape
    return torch.arange(num).split(max(1, _PIXELS // (height * width))) if num else ()


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
