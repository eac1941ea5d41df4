"""Does a deeper network change what few images a worker do?

ResNet-101 in the group norm paper: 32 and 2 images a worker. `FULL` is the paper's setting; three
seeds, where the paper has one run. Small setting: a quarter of the width on ten classes of Tiny
ImageNet at 40×40 pixels, 4 and 2 images a worker, three seeds: 12 runs, about 27 minutes on two
cores.

Needs ImageNet under data/imagenet, or Tiny ImageNet under data/tiny-imagenet-10.
"""

from normlab.lab.recipes import IMAGENET, IMAGENET_NOTE, TINY, TINY_NOTE, by_workers

TITLE = __doc__.splitlines()[0]

FULL = by_workers(
    TITLE, IMAGENET.replace(model="resnet:101"), (32, 2), note=IMAGENET_NOTE,
    norm=("batch", "group:32"), seed=range(3),
)  # fmt: skip
SWEEP = by_workers(
    TITLE, TINY.replace(model="resnet:101:16"), (4, 2), note=TINY_NOTE,
    norm=("batch", "group:8"), seed=range(3),
)  # fmt: skip
