"""The published numbers that normlab's experiments are set beside, with their settings.

A number that was not read in the work it comes from is second-hand and always shown with †.
"""

from dataclasses import dataclass

SECOND_HAND = "†"

SOURCES = {
    "gn": "Wu and He 2018, Group Normalization, arXiv 1803.08494",
    "detectron": "Detectron, model zoo",
    "tf": "shaohua0116/Group-Normalization-Tensorflow",
    "cifar": "HarmanDotpy/Normalizations-in-Deep-Learning",
    "article": "an article that explains group norm",
    "rethinking": "Wu and Johnson 2021, Rethinking 'Batch' in BatchNorm, arXiv 2105.07576",
}


@dataclass(frozen=True)
class Number:
    """One row of a published table.

    Args:
        what: the row's name there.
        values: one per column of the experiment.
        norm: ours that is meant, as `group` or `group:8`; None: there is none.
        at: images that are normalized together; None: any.
        second_hand: taken from another work.
    """

    what: str
    values: tuple[float, ...]
    norm: str | None = None
    at: int | None = None
    second_hand: bool = False


@dataclass(frozen=True)
class Published:
    """A table or figure of a published work.

    Args:
        id: as in experiments and in the log.
        source: a key of SOURCES.
        columns: what the values of a row are, with their units.
        setting: what a reader has to know to compare.
        data: a word that the address of the same data has; "" fits none of ours.
        model: a word that the address of the same network has, or that address; several with spaces
            between.
        epochs, batch_size: of its training, all workers together; None: not said, or several.
        image_size: height and width in pixels; None: as stored.
        numbers: none where only curves were published.
        second_hand: the whole of it.
        measures: what of ours it is set beside: error, time, or nothing (count).
    """

    id: str
    title: str
    source: str
    columns: tuple[str, ...]
    setting: str
    numbers: tuple[Number, ...] = ()
    data: str = ""
    model: str = ""
    epochs: int | None = None
    batch_size: int | None = None
    image_size: int | None = None
    second_hand: bool = False
    measures: str = "error"

    def mark(self, number: Number) -> str:
        """† for a second-hand number."""
        return SECOND_HAND if self.second_hand or number.second_hand else ""


def _sweep(norm: str, name: str, values: dict[int, float]) -> tuple[Number, ...]:
    return tuple(Number(f"{name}, {at}", (v,), norm, at) for at, v in values.items())


_ERROR = ("top-1 error %",)
_AP = ("box AP", "mask AP")
_IMAGENET = (
    "ImageNet, 8 workers, 100 epochs, SGD momentum 0.9, learning rate 0.1 for 32 images a worker, "
    "divided by 10 at 30, 60, 90; median of the last 5 epochs"
)
_RESNET50 = {
    "source": "gn",
    "columns": _ERROR,
    "setting": f"ResNet-50, {_IMAGENET}",
    "data": "imagenet",
    "model": "resnet:50 torchvision:resnet50 timm:resnet50",
    "image_size": 224,
    "epochs": 100,
}
_COCO = {"source": "gn", "columns": _AP, "data": "coco", "model": "mask_rcnn"}
_GROUPS = {64: 24.6, 32: 24.1, 16: 24.6, 8: 24.4, 4: 24.6, 2: 24.7, 1: 25.3}
_SIZES = {64: 24.4, 32: 24.5, 16: 24.2, 8: 24.3, 4: 24.8, 2: 25.6, 1: 28.4}

PUBLISHED: tuple[Published, ...] = (
    Published(
        id="gn-table1",
        title="Norms at 32 images a worker",
        **_RESNET50,  # type: ignore[arg-type]
        batch_size=256,
        numbers=(
            Number("batch norm", (23.6,), "batch", 32),
            Number("layer norm", (25.3,), "layer", 32),
            Number("instance norm", (28.4,), "instance", 32),
            Number("group norm", (24.1,), "group", 32),
            Number("weight norm", (28.2,), "none+wn", 32),
        ),
    ),
    Published(
        id="gn-table2",
        title="Batch norm and group norm by images a worker",
        **_RESNET50,  # type: ignore[arg-type]
        numbers=(
            *_sweep("batch", "batch norm", {32: 23.6, 16: 23.7, 8: 24.8, 4: 27.3, 2: 34.7}),
            *_sweep("group", "group norm", {32: 24.1, 16: 24.2, 8: 24.0, 4: 24.2, 2: 24.1}),
        ),
    ),
    Published(
        id="gn-renorm",
        title="Batch renormalization at 4 images a worker",
        **_RESNET50,  # type: ignore[arg-type]
        batch_size=32,
        numbers=(
            Number("batch renorm, r_max 1.5, d_max 0.5", (26.3,), "batch_renorm", 4),
            Number("batch norm", (27.3,), "batch", 4),
            Number("group norm", (24.2,), "group", 4),
        ),
    ),
    Published(
        id="gn-table3a",
        title="Group norm by number of groups",
        **_RESNET50,  # type: ignore[arg-type]
        batch_size=256,
        numbers=tuple(
            Number(f"{g} groups" if g > 1 else "1 group (layer norm)", (v,), f"group:{g}", 32)
            for g, v in _GROUPS.items()
        ),
    ),
    Published(
        id="gn-table3b",
        title="Group norm by channels per group",
        **_RESNET50,  # type: ignore[arg-type]
        batch_size=256,
        numbers=tuple(
            Number(
                f"{c} channels" if c > 1 else "1 channel (instance norm)",
                (v,),
                f"group:size={c}",
                32,
            )
            for c, v in _SIZES.items()
        ),
    ),
    Published(
        id="gn-resnet101",
        title="ResNet-101 by images a worker",
        source="gn",
        columns=_ERROR,
        setting=f"ResNet-101, {_IMAGENET}",
        data="imagenet",
        model="resnet:101 torchvision:resnet101 timm:resnet101",
        image_size=224,
        epochs=100,
        numbers=(
            *_sweep("batch", "batch norm", {32: 22.0, 2: 31.9}),
            *_sweep("group", "group norm", {32: 22.4, 2: 23.0}),
        ),
    ),
    Published(
        id="gn-fig6",
        title="VGG-16 without a norm and with one",
        source="gn",
        columns=_ERROR,
        setting="VGG-16 on ImageNet, a norm after every convolution or none; percentiles 1, 20, "
        "80, 99 of the last convolution's output before norm and ReLU, over epochs",
        data="imagenet",
        model="vgg:16:64:4096 torchvision:vgg16_bn",
        epochs=100,
        image_size=224,
        numbers=(
            Number("no norm", (29.2,), "none"),
            Number("batch norm", (28.0,), "batch"),
            Number("group norm", (27.6,), "group"),
        ),
    ),
    Published(
        id="gn-table4",
        title="Mask R-CNN, ResNet-50 C4",
        **_COCO,  # type: ignore[arg-type]
        setting="COCO 2017, fine-tuned from ImageNet; BN* is frozen batch norm",
        numbers=(Number("BN*", (37.7, 32.8)), Number("GN", (38.8, 33.6))),
    ),
    Published(
        id="gn-table5",
        title="Mask R-CNN, ResNet-50 FPN, 4conv1fc head",
        **_COCO,  # type: ignore[arg-type]
        setting="COCO 2017, fine-tuned; norm of backbone / of head, BN* is frozen batch norm",
        numbers=(
            Number("BN* / none", (38.6, 34.2)),
            Number("BN* / GN", (39.5, 34.4)),
            Number("GN / GN", (40.0, 34.8)),
        ),
    ),
    Published(
        id="gn-table6",
        title="Mask R-CNN, FPN, norm everywhere",
        **_COCO,  # type: ignore[arg-type]
        setting="COCO 2017, fine-tuned; long: 270,000 iterations; BN* is frozen batch norm",
        numbers=(
            Number("ResNet-50, BN*", (38.6, 34.5)),
            Number("ResNet-50, GN", (40.3, 35.7)),
            Number("ResNet-50, GN, long", (40.8, 36.1)),
            Number("ResNet-101, BN*", (40.9, 36.4)),
            Number("ResNet-101, GN", (41.8, 36.8)),
            Number("ResNet-101, GN, long", (42.3, 37.2)),
        ),
    ),
    Published(
        id="gn-table7",
        title="Mask R-CNN from scratch, FPN",
        **_COCO,  # type: ignore[arg-type]
        setting="COCO 2017, 270,000 iterations, nothing frozen; synchronized BN is of another "
        "detector",
        numbers=(
            Number("ResNet-50, GN", (39.5, 35.2)),
            Number("ResNet-101, GN", (41.0, 36.4)),
            Number("ResNet-50, synchronized BN", (34.5,)),
        ),
    ),
    Published(
        id="gn-table8",
        title="Video classification",
        source="gn",
        columns=("top-1 accuracy %", "top-5 accuracy %"),
        setting="Kinetics-400, inflated-3D ResNet-50, norm over time, height and width, 10 clips",
        data="kinetics",
        model="i3d",
        numbers=(
            Number("clip 32, batch 8, BN", (73.3, 90.7)),
            Number("clip 32, batch 8, GN", (73.0, 90.6)),
            Number("clip 32, batch 4, BN", (72.1, 90.0)),
            Number("clip 32, batch 4, GN", (72.8, 90.6)),
            Number("clip 64, batch 4, BN", (73.3, 90.8)),
            Number("clip 64, batch 4, GN", (74.5, 91.7)),
        ),
    ),
    Published(
        id="cost",
        title="What group norm costs against frozen batch norm",
        source="detectron",
        columns=("GN against BN*, %",),
        setting="R50-FPN detector",
        data="coco",
        model="mask_rcnn",
        numbers=(
            Number("memory", (22.0,)),
            Number("training time", (13.0,)),
            Number("inference time", (47.0,)),
        ),
    ),
    Published(
        id="tf-cost",
        title="How much slower group norm is than batch norm",
        source="tf",
        columns=("GN against BN, %",),
        setting="the repository's own words, about; TensorFlow",
        measures="time",
        numbers=(
            Number("CIFAR-10, SVHN", (20.0,), "group"),
            Number("ImageNet", (300.0,), "group"),
        ),
    ),
    Published(
        id="counts",
        title="Pairs of mean and variance, 5 images with 10 channels",
        source="article",
        columns=("pairs",),
        setting="counted, not measured",
        measures="count",
        numbers=(
            Number("instance norm", (50.0,)),
            Number("layer norm", (5.0,)),
            Number("group norm, two groups", (10.0,)),
            Number("batch norm", (10.0,)),
        ),
    ),
    Published(
        id="tf-batch-size",
        title="Curves of batch norm and group norm at batch sizes 1 to 32",
        source="tf",
        columns=("accuracy",),
        setting="CIFAR-10 and SVHN, four convolutions, aligned by samples seen; curves only, with "
        "batch statistics and dropout on at test and one batch as test set",
        data="cifar10",
        model="convnet",
    ),
    Published(
        id="cifar-seven",
        title="Seven norms, CIFAR-10",
        source="cifar",
        columns=("test error %",),
        setting="ResNet-14, 40,000 training images, 100 epochs, batch 128, SGD 0.1 without "
        "momentum or weight decay, one seed; group norm had 4 channels a group; three runs of what "
        "is batch norm span 11.9 to 12.2, so smaller differences are noise",
        data="cifar10",
        model="cifar_resnet:14",
        epochs=100,
        batch_size=128,
        numbers=(
            Number("torch_bn", (12.1,), "torch_bn", 128),
            Number("bn", (12.2,), "batch", 128),
            Number("bin (its gate never learned)", (11.9,), "batch_instance", 128),
            Number("gn", (14.2,), "group:size=4", 128),
            Number("in", (15.3,), "instance", 128),
            Number("ln", (15.1,), "layer", 128),
            Number("none", (15.1,), "none", 128),
        ),
    ),
    Published(
        id="cifar-batch",
        title="Batch 8 against 128, CIFAR-10",
        source="cifar",
        columns=("validation error %",),
        setting="ResNet-14, 60 epochs, one seed; whole percents",
        data="cifar10",
        model="cifar_resnet:14",
        epochs=60,
        numbers=(
            *_sweep("batch", "bn", {128: 12.0, 8: 12.0}),
            *_sweep("group:size=4", "gn", {128: 14.0, 8: 15.0}),
        ),
    ),
    *(
        Published(
            id=name,
            title=title,
            source="rethinking",
            columns=("error %",),
            setting="ImageNet and others; known second-hand, no number kept",
            second_hand=True,
        )
        for name, title in {
            "bn-precise": "Running averages against population statistics",
            "bn-nbs": "Normalization batch at a fixed SGD batch",
            "bn-freeze": "Statistics frozen for the end of the training",
            "bn-domain": "Statistics of a shifted domain from few images",
            "bn-shared": "Two domains with shared or own statistics",
            "bn-leak": "Batches of one class leak labels",
        }.items()
    ),
)


def published(id: str) -> Published:
    """The entry of that id.

    Raises:
        LookupError: there is none.
    """
    found = next((p for p in PUBLISHED if p.id == id), None)
    if found is None:
        known = ", ".join(p.id for p in PUBLISHED)
        raise LookupError(f"nothing published under {id!r}; there are {known}")
    return found
