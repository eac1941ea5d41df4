"""Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28 by 28, grey.

Source: Xiao, Rasul and Vollgraf 2017, https://arxiv.org/abs/1708.07747; licence MIT.
"""

from normlab.lab.data import published
from normlab.lab.data.dataset import Dataset


def load(what: str, split: str) -> Dataset | None:
    """The split; `what` is the data folder, empty for $NORMLAB_DATA or ./data."""
    return published.read("fashion_mnist", what, split)
