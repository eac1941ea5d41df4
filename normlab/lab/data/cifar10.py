"""CIFAR-10: 50,000 training and 10,000 test photographs in 10 classes, 32 by 32.

Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from normlab.lab.data import published
from normlab.lab.data.dataset import Dataset


def load(what: str, split: str) -> Dataset | None:
    """The split; `what` is the data folder, empty for $NORMLAB_DATA or ./data."""
    return published.read("cifar10", what, split)
