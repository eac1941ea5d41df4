"""How many groups should group norm have?

Table 3 of the group norm paper, first half: 64 groups down to one, which is layer norm, in every
layer. `FULL` is the paper's setting; three seeds, where the paper has one run. Small setting: a
ResNet-50 of a quarter of the width, so 16 groups down to one, on ten classes of Tiny ImageNet at
40×40 pixels, three seeds: 15 runs, about 19 minutes on two cores.

Needs ImageNet under data/imagenet, or Tiny ImageNet under data/tiny-imagenet-10.
"""

from normlab import Sweep
from normlab.lab.recipes import IMAGENET, IMAGENET_NOTE, TINY, TINY_NOTE

TITLE = __doc__.splitlines()[0]
COUNTS = ("group:16", "group:8", "group:4", "group:2", "layer")

FULL = Sweep.grid(
    TITLE, IMAGENET, note=IMAGENET_NOTE, norm=("group:64", "group:32", *COUNTS), seed=range(3)
)
SWEEP = Sweep.grid(TITLE, TINY, note=TINY_NOTE, norm=COUNTS, seed=range(3))
