"""Networks of torchvision, timm and segmentation-models-pytorch with their norms converted.

Each is made with random weights, converted to group norm, and taken through one step; the slow
tests go through all of them and print a matrix, what cannot be converted included.
"""

import functools
import gc
import time
import warnings

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from normlab import surgery
from normlab.layer import Norm
from normlab.surgery.tables import table

torchvision = pytest.importorskip("torchvision")

NUM_IMAGES = 2
SIZES = (64, 128, 160, 224, 256, 299)  # pixels; the first that the network takes
NO_CHANNEL_NORM = "no norm over channels"
TITLES = ("model", "norms", "converted", "left", "pixels", "outcome", "seconds")

SMP = ["Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3",
       "DeepLabV3Plus", "UPerNet", "Segformer"]  # fmt: skip
VIDEO = ["r3d_18", "mc3_18", "r2plus1d_18", "s3d"]
DETECTION = ["maskrcnn_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn",
             "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn", "ssdlite320_mobilenet_v3_large",
             "keypointrcnn_resnet50_fpn"]  # fmt: skip
SEGMENTATION = [
    "fcn_resnet50",
    "deeplabv3_resnet50",
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
]


def images(size):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(NUM_IMAGES, 3, size, size, generator=generator)


def clips(size):
    return images(size).unsqueeze(2).repeat(1, 1, 16, 1, 1)


def photographs(size):
    """What torchvision's detectors take in training: images and boxes."""
    box = torch.tensor([[4.0, 4.0, size / 2, size / 2]])
    target = {
        "boxes": box,
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, size, size, dtype=torch.uint8),
        "keypoints": torch.ones(1, 17, 3),
    }
    return list(images(size)), [dict(target) for _ in range(NUM_IMAGES)]


def step(model, *args):
    """One forward and backward pass in training mode; raises unless all gradients are finite."""
    outputs = tree_leaves(model.train()(*args))
    values = [t for t in outputs if isinstance(t, torch.Tensor) and t.requires_grad]
    loss = sum(t.float().square().mean() for t in values)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients, "no parameter has a gradient"
    finite = all(bool(g.isfinite().all()) for g in gradients)
    assert finite, "a gradient is not finite"


def size_for(model, make_input, sizes):
    """The smallest size a network takes in training; its running statistics are data's then."""
    for size in sizes:
        sample = make_input(size)
        try:
            with torch.no_grad():
                model.train()(*(sample if isinstance(sample, tuple) else (sample,)))
            return size
        except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
            reason = error
    raise AssertionError(f"the network itself does not run: {_first_line(reason)}")


def convert(name, build, make_input=images, sizes=SIZES, **options):
    """A row of the matrix: converted, taken through a step, and validated by opacus if there."""
    start, planned, size, outcome = time.perf_counter(), None, "", "ok"
    try:
        model = build()
        planned = surgery.plan(model, "group", **options)  # for its numbers, if the next line fails
        size = size_for(model, make_input, sizes)
        planned = surgery.plan(model, "group", **options)
        model = planned.commit().model
        sample = make_input(size)
        step(model, *(sample if isinstance(sample, tuple) else (sample,)))
        outcome = opacus_says(model) or "ok"
    except surgery.SurgeryError as error:
        outcome = NO_CHANNEL_NORM if "0 norms matched" in str(error) else f"refused: {error}"
    except Exception as error:  # the matrix says what happened, whatever it was
        outcome = f"{type(error).__name__}: {_first_line(error)}"
    changed = 0 if planned is None else len(planned.changes)
    left = 0 if planned is None else len(planned.left)
    gc.collect()
    seconds = f"{time.perf_counter() - start:.1f}"
    return [name, changed + left, changed, left, size, outcome[:300], seconds]


def _first_line(error):
    return (str(error) or type(error).__name__).splitlines()[0]


def opacus_says(model):
    """What opacus's validator finds wrong with the norms of a model in training mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from opacus.validators import ModuleValidator
        except ImportError:
            return ""
        errors = ModuleValidator.validate(model.train(), strict=False)
    return "; ".join(f"opacus: {e}" for e in errors if "orm" in str(e))


@pytest.fixture(autouse=True)
def old_libraries_may_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def build_torchvision(name, **options):
    return torchvision.models.get_model(name, weights=None, **options)


def build_detector(name):
    return build_torchvision(name, weights_backbone=None, num_classes=5)


def build_timm(name):
    timm = pytest.importorskip("timm")
    return timm.create_model(name, pretrained=False)


def build_smp(name):
    smp = pytest.importorskip("segmentation_models_pytorch")
    return getattr(smp, name)("resnet18", encoder_weights=None)


FAST = {
    "torchvision resnet18": (functools.partial(build_torchvision, "resnet18"), images),
    "torchvision shufflenet (58 channels)": (
        functools.partial(build_torchvision, "shufflenet_v2_x0_5"), images,
    ),
    "torchvision video r3d_18": (functools.partial(build_torchvision, "r3d_18"), clips),
    "timm BatchNormAct2d": (functools.partial(build_timm, "regnetx_002"), images),
    "timm ReLU6, which has no name here": (
        functools.partial(build_timm, "mobilenetv2_050"), images,
    ),
    "timm LayerNorm2d": (functools.partial(build_timm, "convnext_atto"), images),
    "timm group norm": (functools.partial(build_timm, "test_resnet"), images),
    "smp Unet": (functools.partial(build_smp, "Unet"), images),
}  # fmt: skip


@pytest.mark.parametrize("name", FAST)
def test_network_is_converted_and_trains(name):
    build, make_input = FAST[name]
    row = dict(zip(TITLES, convert(name, build, make_input)))
    assert row["outcome"] == "ok"
    assert row["converted"] > 0


def test_detector_has_no_batch_norm_left():
    model = build_detector("fasterrcnn_mobilenet_v3_large_320_fpn")
    surgery.convert(model, "group")
    kinds = {
        type(m).__name__ for m in model.modules() if type(m).__name__.endswith(("Norm", "Norm2d"))
    }
    assert kinds == {"GroupNorm"}
    assert any(isinstance(m, Norm) for m in model.modules())
    step(model, *photographs(64))


def test_matrix_lists_what_fails():
    row = convert("fails", lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Linear(7, 1)))
    assert "the network itself does not run" in row[5]
    assert convert("has none", lambda: nn.Linear(3, 1))[5] == NO_CHANNEL_NORM


def torchvision_rows():
    names = torchvision.models.list_models(module=torchvision.models)
    return [convert(name, functools.partial(_lean, build_torchvision, name)) for name in names]


def _lean(build, name):
    """A network, unless it has no norm to convert, which is found out without making weights."""
    with torch.device("meta"):
        try:
            model = build(name)
        except (RuntimeError, NotImplementedError):  # what needs values to be made
            model = None
    if model is not None:
        surgery.plan(model, "group")
    return build(name)


def timm_rows():
    timm = pytest.importorskip("timm")
    names = filter(None, map(_smallest, timm.list_modules()))
    return [convert(name, functools.partial(_lean, build_timm, name)) for name in names]


_SMALL = ("test_", "femto", "atto", "pico", "nano", "zepto", "micro", "mini", "xxs", "tiny", "xs",
          "_t0", "small", "_s", "050", "18", "26", "_b0", "_b")  # fmt: skip


def _smallest(family):
    """The network of a family whose name promises to be small."""
    import timm

    names = timm.list_models(module=family)
    rank = {name: next((i for i, s in enumerate(_SMALL) if s in name), 99) for name in names}
    return min(names, key=lambda name: (rank[name], len(name), name), default=None)


def other_rows():
    rows = [convert(f"smp {n}", functools.partial(build_smp, n)) for n in SMP]
    rows += [convert(n, functools.partial(build_torchvision, n), clips) for n in VIDEO]
    rows += [
        convert(n, functools.partial(build_detector, n), photographs, sizes=(128,))
        for n in DETECTION[:-1]
    ]
    return rows + [convert(n, functools.partial(build_detector, n)) for n in SEGMENTATION]


# networks that cannot be converted or run, and why
KNOWN: dict[str, str] = {}


@pytest.mark.slow
@pytest.mark.parametrize("rows", [torchvision_rows, timm_rows, other_rows])
def test_zoo_is_converted(rows, capsys):
    matrix = rows()
    outcomes = [row[5] for row in matrix]
    ok, none = outcomes.count("ok"), outcomes.count(NO_CHANNEL_NORM)
    with capsys.disabled():
        print("", *table(TITLES, [[str(cell) for cell in row] for row in matrix]), sep="\n")
        print(f"{len(matrix)} networks: {ok} ok, {none} without, {len(matrix) - ok - none} failed")
    failed = {row[0]: row[5] for row in matrix if row[5] not in ("ok", NO_CHANNEL_NORM)}
    unexpected = {name: why for name, why in failed.items() if KNOWN.get(name, "?") not in why}
    assert not unexpected
