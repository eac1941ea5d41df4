"""ImageNet, imagenet:ROOT: 1,281,167 training and 50,000 validation images in 1,000 classes.

ROOT/train/<class>/*.JPEG, and ROOT/val either in such folders or flat, beside val_annotations.txt
or Kaggle's LOC_val_solution.csv; or Kaggle's archive, unpacked; or ROOT/train_list.txt and
val_list.txt, "relative/path label" a line.

Source: the challenge of 2012, Russakovsky et al. 2015, https://www.image-net.org; for research
only, not fetched by us.
"""

from normlab.lab.data import wordnet
from normlab.lab.data.dataset import Dataset


def load(what: str, split: str) -> Dataset | None:
    """The split, decoded as it is fetched; the official test labels are not public."""
    return wordnet.read("imagenet", what, split)
