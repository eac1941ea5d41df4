"""How do batch norm and group norm take few images a worker?

Table 2 and figures 1 and 5 of the group norm paper: 32 to 2 images share statistics on each of 8
workers; the batch of SGD is 8 times as many, with the learning rate in proportion. `FULL` is the
paper's setting; three seeds, where the paper has one run. Small setting: a ResNet-50 of a quarter
of the width on ten classes of Tiny ImageNet at 40×40 pixels, 8, 4 and 2 images a worker, three
seeds: 18 runs, about 20 minutes on two cores.

Needs ImageNet under data/imagenet, or Tiny ImageNet under data/tiny-imagenet-10.
"""

from normlab.lab.recipes import IMAGENET, IMAGENET_NOTE, TINY, TINY_NOTE, by_workers

TITLE = __doc__.splitlines()[0]

FULL = by_workers(
    TITLE, IMAGENET, (32, 16, 8, 4, 2), note=IMAGENET_NOTE,
    norm=("batch", "group:32"), seed=range(3),
)  # fmt: skip
SWEEP = by_workers(TITLE, TINY, (8, 4, 2), note=TINY_NOTE, norm=("batch", "group:8"), seed=range(3))
