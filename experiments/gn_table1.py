"""Which norm for ResNet-50 at 32 images a worker?

Table 1 and figure 4 of the group norm paper: batch, layer, instance and group norm, and weight norm
in place of them, with the same hyper-parameters. `FULL` is the paper's setting; three seeds, where
the paper has one run. Small setting: a ResNet-50 of a quarter of the width on ten classes of Tiny
ImageNet at 40×40 pixels, 4 workers with 8 images each, three seeds: 15 runs, about 18 minutes on
two cores.

Needs ImageNet under data/imagenet, or Tiny ImageNet under data/tiny-imagenet-10.
"""

from normlab import Sweep
from normlab.lab.recipes import IMAGENET, IMAGENET_NOTE, TINY, TINY_NOTE, by_workers

TITLE = __doc__.splitlines()[0]
NORMS = ("batch", "layer", "instance", "none+wn")

FULL = by_workers(
    TITLE, IMAGENET, (32,), note=IMAGENET_NOTE, norm=(*NORMS, "group:32"), seed=range(3)
)
SWEEP = Sweep.grid(
    TITLE, TINY.replace(norm_batch_size=8), note=TINY_NOTE, norm=(*NORMS, "group:8"), seed=range(3)
)
