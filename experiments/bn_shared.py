"""Should two domains share batch norm's statistics, or have their own?

Section 5 of "Rethinking Batch in BatchNorm" (second-hand), on MNIST and Fashion-MNIST, 20 classes
in one network. Batches are either drawn from both domains, or each from one; norms share
statistics, weight and bias, or have those of each domain. With batches of one domain a shared norm
is trained with the statistics of a domain and judged with those of both. Group norm is the control.
`FULL` has all images, 20 epochs, ResNet-20. Small setting: ResNet-8, 8,000 training and 4,000
validation images at 14×14 pixels, 6 epochs, five seeds: 25 runs, about 9 minutes on two cores.

Needs `normlab data mnist fashion_mnist`.
"""

from normlab import Experiment, Sweep

TITLE = __doc__.splitlines()[0]
ALL = Experiment(data="joined:mnist+fashion_mnist", model="cifar_resnet:20", epochs=20)
SMALL = ALL.replace(
    model="cifar_resnet:8", image_size=14, num_train=8000, num_validation=4000, epochs=6
)
NOTE = (
    "Small setting: ResNet-8, 8,000 training images of MNIST and Fashion-MNIST together at 14×14 "
    "pixels. A norm of each domain is told of which domain an image is. No published number was at "
    "hand."
)


def sweep(base: Experiment, note: str) -> Sweep:
    shared = Sweep.grid(
        TITLE, base, note=note, norm=("batch", "group"), order=(None, "domain"), seed=range(5)
    )
    apart = base.replace(order="domain", norm="domain_batch:2")
    return shared + Sweep.grid("", apart, seed=range(5))


FULL = sweep(ALL, "Full setting: all images, 20 epochs.")
SWEEP = sweep(SMALL, NOTE)
