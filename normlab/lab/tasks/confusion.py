"""Which classes a trained network takes for which, and where it is surest and wrong."""

from typing import Any

import torch
from torch import nn

from normlab.lab import domains
from normlab.lab.data.dataset import Dataset
from normlab.lab.tasks import classification
from normlab.lab.tasks.classification import Input

MOST_MISTAKES = 50  # kept of a run
MOST_CLASSES = 200  # a larger matrix is left out: it would be most of the run's folder
_IMAGES = 128  # at a time


def confusion(
    model: nn.Module, dataset: Dataset, input: Input, device: torch.device
) -> dict[str, Any]:
    """Counts (true, predicted), and [index, true, predicted, probability] of the surest mistakes.

    Empty for more than MOST_CLASSES classes. The model is left as it was.
    """
    classes = input.classes
    if len(classes) > MOST_CLASSES:
        return {}
    was_training = model.training
    belong = domains.of(dataset.domains, dataset.labels)
    found = [
        classification.predict(
            model, dataset.images[at], input, device, None if belong is None else belong[at]
        ).max(1)
        for at in torch.arange(len(dataset)).split(_IMAGES)
    ]
    model.train(was_training)
    predicted, sure = torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])
    labels = dataset.labels[torch.arange(len(dataset))].cpu()
    cells = torch.bincount(labels * len(classes) + predicted, minlength=len(classes) ** 2)
    wrong = (predicted != labels).nonzero()[:, 0]
    worst = wrong[sure[wrong].argsort(descending=True, stable=True)][:MOST_MISTAKES].tolist()
    mistakes = [[i, int(labels[i]), int(predicted[i]), round(float(sure[i]), 4)] for i in worst]
    return {
        "classes": list(classes),
        "counts": cells.reshape(len(classes), -1).tolist(),
        "mistakes": mistakes,
    }
