"""Does batch renormalization mend batch norm at 4 images a worker?

The group norm paper's section 4.1: r is at most 1.5 and d at most 0.5. Statistics of 4 images are
here those of each eighth of a batch of 32, computed one after the other, which moves the running
averages eight times a step. `FULL` is the paper's setting; three seeds, where the paper has one
run. Small setting: a ResNet-18 of a quarter of the width on ten classes of Tiny ImageNet at 40×40
pixels, three seeds: 9 runs, about 13 minutes on two cores.

Needs ImageNet under data/imagenet, or Tiny ImageNet under data/tiny-imagenet-10.
"""

from normlab import Sweep
from normlab.lab.recipes import IMAGENET, IMAGENET_NOTE, TINY, TINY_NOTE, WORKERS

TITLE = __doc__.splitlines()[0]
NORMS = ("batch", "batch_renorm")
PARTS = " Every batch is computed in eight parts of 4 images, which share statistics."

FULL = Sweep.grid(
    TITLE, IMAGENET.replace(batch_size=4 * WORKERS, accumulate=WORKERS), note=IMAGENET_NOTE + PARTS,
    norm=(*NORMS, "group:32"), seed=range(3),
)  # fmt: skip
SWEEP = Sweep.grid(
    TITLE,
    TINY.replace(model="resnet:18:16", batch_size=4 * WORKERS, accumulate=WORKERS),
    note=TINY_NOTE + PARTS,
    norm=(*NORMS, "group:8"), seed=range(3),
)  # fmt: skip
