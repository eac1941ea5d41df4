"""MNIST: 60,000 training and 10,000 test images of handwritten digits, 28 by 28, grey.

Source: LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist/.
"""

from normlab.lab.data import published
from normlab.lab.data.dataset import Dataset


def load(what: str, split: str) -> Dataset | None:
    """The split; `what` is the data folder, empty for $NORMLAB_DATA or ./data."""
    return published.read("mnist", what, split)
