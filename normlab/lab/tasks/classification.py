"""Classification of images: how they enter the network, the loss, and the scores."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normlab.lab import domains
from normlab.lab.data.batches import fetch
from normlab.lab.data.dataset import Dataset


@dataclass(frozen=True)
class Input:
    """How stored images become what the network sees; kept with the weights.

    Args:
        mean, std: per stored channel, in units of 0 … 255.
        shape: (C, H, W) of a stored image.
        classes: the name of each class.
        view: what is seen of a picture that is larger: the whole, or its centre.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    view: str = "whole"

    @classmethod
    def of(cls, dataset: Dataset, view: str = "whole") -> "Input":
        """The statistics of some thousand images of a training set; fewer if each is decoded."""
        most = 4096 if isinstance(dataset.images, Tensor) else 1024
        step = max(1, len(dataset) // most)
        sample = fetch(dataset, torch.arange(0, len(dataset), step), skip_bad=True).images
        std, mean = torch.std_mean(sample.double(), (0, 2, 3), correction=0)
        _, channels, height, width = map(int, dataset.images.shape)
        std = torch.where(std > 0, std, 1)  # a channel of one value stays at 0
        return cls(
            tuple(mean.tolist()), tuple(std.tolist()), (channels, height, width), dataset.classes,
            view,
        )  # fmt: skip

    def prepare(self, images: Tensor, device: torch.device, colour: Tensor | None = None) -> Tensor:
        """uint8 (B, C, H, W) -> float32 (B, 3, H, W) of mean 0 and variance 1 over the set.

        Args:
            colour: (B, 3, 4), for each image A and b of the change x -> A x + b of its colours,
                in units of 0 … 255.
        """
        x = images.to(device, non_blocking=True).to(torch.float32)
        if colour is not None:
            x = _recoloured(x.expand(-1, 3, -1, -1), colour.to(device, non_blocking=True))
        mean, std = (
            torch.tensor(s, device=device).reshape(-1, 1, 1) for s in (self.mean, self.std)
        )
        x = (x - mean) / std
        return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x


def _recoloured(x: Tensor, colour: Tensor) -> Tensor:
    flat = torch.baddbmm(colour[:, :, 3:], colour[:, :, :3], x.flatten(2))
    return flat.view(x.shape)


def loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy; `smoothing` is the part of each label spread over all classes."""
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


def num_wrong(logits: Tensor, labels: Tensor) -> int:
    """Images whose highest logit is another class's."""
    return int((logits.argmax(1) != labels).sum())


@torch.inference_mode()
def predict(
    model: nn.Module,
    images: Tensor,
    input: Input,
    device: torch.device,
    belongs: Tensor | None = None,
) -> Tensor:
    """Class probabilities (B, classes) in evaluation mode, on the CPU; see `domains.forward`."""
    model.eval()
    return domains.forward(model, input.prepare(images, device), belongs).softmax(1).cpu()


def scores(probabilities: Tensor, labels: Tensor, num_classes: int) -> dict[str, object]:
    """Accuracy, error, F1 scores in percent, and the confusion matrix (true, predicted)."""
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_confusion_matrix,
        multiclass_f1_score,
    )

    def f1(average: Literal["micro", "macro"]) -> float:
        return 100 * float(multiclass_f1_score(probabilities, labels, num_classes, average))

    accuracy = 100 * float(multiclass_accuracy(probabilities, labels, num_classes, "micro"))
    matrix = multiclass_confusion_matrix(probabilities.argmax(1), labels, num_classes)
    return {
        "accuracy": accuracy,
        "error": 100 - accuracy,
        "micro_f1": f1("micro"),
        "macro_f1": f1("macro"),
        "num_images": len(labels),
        "confusion": matrix.tolist(),
    }
