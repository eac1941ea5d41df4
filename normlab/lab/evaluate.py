"""Judge a trained run: always on the whole set, always in evaluation mode."""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from normlab.lab import checkpoint, data, domains, models
from normlab.lab.compute import Compute
from normlab.lab.data import loader
from normlab.lab.data.batches import InOrder
from normlab.lab.data.dataset import DataError, Dataset, Images
from normlab.lab.processes import Group
from normlab.lab.runs import Run
from normlab.lab.tasks import classification
from normlab.lab.tasks.classification import Input
from normlab.lab.weights import load_weights

_PIXELS, _LEAST = 2**17, 16  # per batch: 128 images of 32 × 32, and at least so many


def measure(
    model: nn.Module, dataset: Dataset, input: Input, device: torch.device
) -> tuple[float, float]:
    """Mean loss and error in percent over a data set."""
    alone = Group(0, 1, device)
    return measure_together(model, dataset, input, alone, Compute(workers=0))


@torch.inference_mode()
def measure_together(
    model: nn.Module, dataset: Dataset, input: Input, group: Group, compute: Compute
) -> tuple[float, float]:
    """The same by several processes, each of which judges every so many-th part of the set."""
    was_training = model.training
    model.eval()
    total, wrong, count = torch.zeros((), dtype=torch.float64), 0, 0
    source = InOrder(dataset)
    places = list(source.places(_together(dataset.images)))
    parts = loader.stream(
        source, places[group.rank :: group.size],
        workers=loader.num_workers(dataset, compute.workers, group.size),
        timeout=compute.timeout, pin_memory=group.device.type == "cuda",
    )  # fmt: skip
    with contextlib.closing(parts) as batches:
        for batch in batches:
            labels = batch.labels.to(group.device)
            x = input.prepare(batch.images, group.device)
            logits = domains.forward(model, x, domains.of(dataset.domains, batch.labels))
            total += classification.loss(logits, labels).cpu().double() * len(labels)
            wrong += classification.num_wrong(logits, labels)
            count += len(labels)
    model.train(was_training)
    loss, num_wrong, num = group.sum([float(total), wrong, count])
    return loss / num, 100 * num_wrong / num


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
    kind = "average." if any(n.startswith("average.") for n in tensors) else "model."
    weights = {n.removeprefix(kind): t for n, t in tensors.items() if n.startswith(kind)}
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
            e.data, split, image_size=e.image_size, validation=e.validation, limit=limit,
            view=input.view,
        )  # fmt: skip
        if dataset.classes != input.classes:
            raise DataError(
                f"{e.data}: the classes have changed since training, from "
                f"{', '.join(input.classes)} to {', '.join(dataset.classes)}; train again"
            )
        belong = domains.of(dataset.domains, dataset.labels)
        probabilities = predict(model, dataset.images, input, device, belong=belong)
        found[split] = classification.scores(probabilities, dataset.labels, len(input.classes))
    return found, input.classes


def predict(
    model: nn.Module,
    images: Images,
    input: Input,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
    belong: Tensor | None = None,
) -> Tensor:
    """Class probabilities (N, classes) of images, in batches.

    Args:
        progress: called with the number of images done.
        belong: the domain of each, (N,); None: there are none.
    """
    parts = []
    for indices in torch.arange(images.shape[0]).split(_together(images)):
        where = None if belong is None else belong[indices]
        parts.append(classification.predict(model, images[indices], input, device, where))
        if progress and len(indices):
            progress(int(indices[-1]) + 1)
    return torch.cat(parts) if parts else torch.empty(0, len(input.classes))


def _together(images: Images) -> int:
    """How many images are judged together, of a bounded number of pixels."""
    height, width = images.shape[2:]
    return max(_LEAST, _PIXELS // (height * width))


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
