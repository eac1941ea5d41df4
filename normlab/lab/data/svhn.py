"""SVHN: 73,257 training and 26,032 test images of house numbers, 32 by 32, cropped.

Source: Netzer et al. 2011, http://ufldl.stanford.edu/housenumbers/; non-commercial use only.
"""

from normlab.lab.data import published
from normlab.lab.data.dataset import Dataset


def load(what: str, split: str) -> Dataset | None:
    """The split; `what` is the data folder, empty for $NORMLAB_DATA or ./data."""
    return published.read("svhn", what, split)
