"""Tiny ImageNet: 100,000 training and 10,000 validation images, 64 by 64; tiny_imagenet:ROOT.

ROOT/train/<class>/images/*.JPEG, ROOT/val/val_annotations.txt, ROOT/wnids.txt and words.txt, as in
the published archive.

Source: Stanford's CS231n, http://cs231n.stanford.edu/tiny-imagenet-200.zip; for research only, not
fetched by us.
"""

from normlab.lab.data import wordnet
from normlab.lab.data.dataset import Dataset


def load(what: str, split: str) -> Dataset | None:
    """The split, decoded as it is fetched; the test labels are not public."""
    return wordnet.read("tiny_imagenet", what, split)
