"""How many channels should a group of group norm have?

Table 3 of the group norm paper, second half: 64 channels a group down to one, which is instance
norm, in every layer. `FULL` is the paper's setting; three seeds, where the paper has one run. Small
setting: a ResNet-50 of a quarter of the width, so 16 channels down to one, on ten classes of Tiny
ImageNet at 40×40 pixels, three seeds: 15 runs, about 19 minutes on two cores.

Needs ImageNet under data/imagenet, or Tiny ImageNet under data/tiny-imagenet-10.
"""

from normlab import Sweep
from normlab.lab.recipes import IMAGENET, IMAGENET_NOTE, TINY, TINY_NOTE

TITLE = __doc__.splitlines()[0]
SIZES = ("group:size=16", "group:size=8", "group:size=4", "group:size=2", "instance")

FULL = Sweep.grid(
    TITLE, IMAGENET, note=IMAGENET_NOTE,
    norm=("group:size=64", "group:size=32", *SIZES), seed=range(3),
)  # fmt: skip
SWEEP = Sweep.grid(TITLE, TINY, note=TINY_NOTE, norm=SIZES, seed=range(3))
