"""The 1,797 handwritten digits of 8 by 8 pixels that come with normlab: data without a download.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49, the test part; licence CC BY 4.0. In digits.npz
the pixels are ordered column by column, which compresses best.
"""

from pathlib import Path

import numpy as np
import torch

from normlab.lab.data.arrays import fixed_permutation
from normlab.lab.data.dataset import DataError, Dataset

NUM_TRAIN = 1347


def load(what: str, split: str) -> Dataset | None:
    """1,347 training and 450 validation digits, (N, 1, 8, 8); there is no test split."""
    if what:
        raise DataError(f"digits takes nothing after a colon, got {what!r}; write digits")
    if split == "test":
        return None
    values, labels = original()
    images = torch.from_numpy((values.astype(np.uint16) * 255 + 8) // 16).to(torch.uint8)
    order = fixed_permutation(len(labels))
    chosen = order[:NUM_TRAIN] if split == "train" else order[NUM_TRAIN:]
    classes = tuple(str(k) for k in range(10))
    return Dataset(images[:, None], torch.from_numpy(labels.astype(np.int64)), classes).select(
        chosen
    )


def original() -> tuple[np.ndarray, np.ndarray]:
    """The digits as published: values 0 to 16, (1797, 8, 8), and labels, (1797,); both uint8."""
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        return file["columns"].transpose(1, 2, 0), file["labels"]
