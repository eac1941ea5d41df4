"""How do batch norm and group norm take small batches on CIFAR-10?

The batch size of SGD itself is swept, with the learning rate in proportion and the same number of
epochs, as in table 2 of the group norm paper and figure 1 of the TensorFlow repository. Small
setting: ResNet-8, 4,000 training and 2,000 validation images at 16×16 pixels, 8 epochs, three
seeds. `FULL` is ResNet-20 on all images at 32×32 pixels, 100 epochs, batches of 1 to 32.

Needs CIFAR-10 as data/cifar10/train.npz and test.npz, or `data="cifar10"` after
`normlab data cifar10`.
"""

from normlab import Experiment, Sweep

NORMS = ("batch", "group")
ALL = Experiment(
    data="npz:data/cifar10", model="cifar_resnet:20", epochs=100, augment="crop_flip",
    schedule="step",
)  # fmt: skip
SMALL = ALL.replace(
    model="cifar_resnet:8", image_size=16, num_train=4000, num_validation=2000, epochs=8,
    schedule="cosine",
)  # fmt: skip

NOTE = (
    "Small setting, 16×16 pixels: the last map has 4×4 positions, so even 2 images give batch norm "
    "32 values per channel. Not comparable with the paper's table 2 (ImageNet, ResNet-50, 32 to 2 "
    "images a worker: batch norm 23.6 23.7 24.8 27.3 34.7, group norm 24.1 24.2 24.0 24.2 24.1)."
)

FULL = Sweep.grid(
    __doc__.splitlines()[0], ALL,
    norm=NORMS, batch_size=(1, 2, 4, 8, 16, 32), seed=range(5),
)  # fmt: skip
SWEEP = Sweep.grid(
    __doc__.splitlines()[0], SMALL, note=NOTE,
    norm=NORMS, batch_size=(2, 8, 32), seed=(0, 1, 2),
)  # fmt: skip
