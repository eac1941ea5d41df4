"""Every file of experiments/: what it runs, that it can run, and what it is set beside."""

import functools
import runpy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_runs import FakeRun
from PIL import Image

from normlab.lab import models, probes, recipes, train
from normlab.lab.analysis import analyse
from normlab.lab.compute import Compute
from normlab.lab.experiment import Experiment, Sweep
from normlab.lab.published import published
from normlab.lab.report import published as beside
from normlab.lab.runs import Run
from normlab.lab.sweep import canonical

FOLDER = Path(__file__).parent.parent / "experiments"
FILES = {file.stem: file for file in sorted(FOLDER.glob("*.py"))}

# runs of SWEEP and of FULL, after those that are the same are left out
NUMBERS = {
    "batch_size_cifar10": (18, 60),
    "batch_size_fashion_mnist": (24, None),
    "bn_domain": (10, 6),
    "bn_freeze": (18, 24),
    "bn_leak": (20, 20),
    "bn_nbs": (18, 24),
    "bn_precise": (10, 10),
    "bn_shared": (25, 25),
    "cifar_batch": (20, 12),
    "cifar_seven": (35, 21),
    "conversion": (435, None),
    "features_vgg": (9, 9),
    "gn_renorm": (9, 9),
    "gn_resnet101": (12, 12),
    "gn_table1": (15, 15),
    "gn_table2": (18, 30),
    "gn_table3a": (15, 21),
    "gn_table3b": (15, 21),
    "group_division_cifar10": (50, 50),
    "norm_batch_cifar10": (35, 35),
    "tf_batch_size": (18, 144),
    "tf_datasets": (24, 36),
}

FULL = [name for name, (_, full) in NUMBERS.items() if full is not None]

# the published table that a FULL is the setting of; rows without a number of ours
PUBLISHED = {
    "gn_table1": "gn-table1",
    "gn_table2": "gn-table2",
    "gn_renorm": "gn-renorm",
    "gn_table3a": "gn-table3a",
    "gn_table3b": "gn-table3b",
    "gn_resnet101": "gn-resnet101",
    "features_vgg": "gn-fig6",
    "cifar_seven": "cifar-seven",
    "cifar_batch": "cifar-batch",
}


@functools.cache
def sweeps(name: str) -> dict[str, Sweep]:
    found = runpy.run_path(str(FILES[name]))
    return {key: found[key] for key in ("SWEEP", "FULL") if key in found}


EVERY = [(name, "SWEEP") for name in NUMBERS] + [(name, "FULL") for name in FULL]


def test_every_file_is_known_here():
    assert sorted(NUMBERS) == sorted(FILES)


@pytest.mark.parametrize(("name", "which"), EVERY)
def test_sweep_holds_the_runs_it_says(name, which):
    small, full = NUMBERS[name]
    sweep = sweeps(name)[which]
    assert len(canonical(sweep.experiments)) == (small if which == "SWEEP" else full)
    assert all(isinstance(e, Experiment) for e in sweep.experiments)


@pytest.mark.parametrize(("name", "which"), EVERY)
def test_title_is_the_question(name, which):
    doc = FILES[name].read_text(encoding="utf-8").removeprefix('"""').splitlines()[0]
    assert sweeps(name)[which].title == doc
    assert doc.endswith("?")


@pytest.mark.parametrize("name", FULL)
def test_report_says_which_of_the_two_settings_it_shows(name):
    small, full = (sweeps(name)[which] for which in ("SWEEP", "FULL"))
    assert small.note != full.note
    assert not set(small.experiments) & set(full.experiments)


@pytest.mark.parametrize(("name", "which"), EVERY)
def test_networks_are_built_and_probed(name, which):
    fields = ("model", "norm", "norm_batch_size", "zero_init", "probe")
    wanted = {tuple(getattr(e, f) for f in fields) for e in sweeps(name)[which].experiments}
    for model, norm, norm_batch_size, zero_init, probe in canonical_networks(wanted):
        with torch.device("meta"):
            network = models.build(
                model, 10, norm=norm, norm_batch_size=norm_batch_size, zero_init=zero_init
            )
        probes.Recorder(network, probe)


def canonical_networks(wanted):
    """The networks of runs: a norm of single images is not told the normalization batch."""
    for model, norm, size, zero_init, probe in wanted:
        (e,) = canonical([Experiment(norm=norm, batch_size=256, norm_batch_size=size)])
        yield model, norm, e.norm_batch_size, zero_init, probe


@pytest.mark.parametrize(("name", "id"), list(PUBLISHED.items()))
def test_full_setting_stands_beside_the_published_numbers(name, id):
    runs = [FakeRun(e, [50.0] * 5) for e in canonical(sweeps(name)["FULL"].experiments)]
    table = beside.beside(analyse(runs, last=5), published(id))
    assert table.columns[-1] == "ours"
    assert [row[-1] for row in table.rows] == ["50.0 ± 0.0"] * len(table.rows)
    if published(id).source == "gn":
        assert "Comparable: data, network, epochs and batch are the published ones" in table.note


@pytest.mark.parametrize(("name", "id"), list(PUBLISHED.items()))
def test_small_setting_is_called_small(name, id):
    runs = [FakeRun(e, [50.0] * 3) for e in canonical(sweeps(name)["SWEEP"].experiments)]
    table = beside.beside(analyse(runs), published(id))
    assert all(c.startswith(("what", "published", "ours, small")) for c in table.columns)
    assert "Comparable" not in table.note


def test_learning_rate_follows_the_images_a_worker():
    """0.1 for 32 images on each of 8 workers, and in proportion."""
    found = {
        (e.norm_batch_size, e.learning_rate * e.batch_size / e.learning_rate_batch)
        for e in sweeps("gn_table2")["FULL"].experiments
    }
    assert found == {(32, 0.1), (16, 0.05), (8, 0.025), (4, 0.0125), (2, 0.00625)}


def test_study_is_the_published_one():
    """Section 3: no warm-up, momentum or weight decay; 40,000 and 10,000 images."""
    e = recipes.CIFAR_STUDY
    assert (e.warmup, e.momentum, e.weight_decay, e.validation) == (0, 0, 0, 0.2)
    assert [m * e.epochs for m in e.milestones] == [75, 95]


CLASSES = {"n01443537": "goldfish", "n02056570": "king penguin"}


def picture(path: Path, size: tuple[int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path, "JPEG")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """ImageNet and Tiny ImageNet in their official layouts, and arrays for other sets."""
    root = tmp_path_factory.mktemp("data")
    for k in range(8):
        wnid = list(CLASSES)[k % 2]
        picture(root / f"imagenet/train/{wnid}/{wnid}_{k}.JPEG", (60 + k, 50), k)
        picture(root / f"tiny/train/{wnid}/images/{wnid}_{k}.JPEG", (64, 64), k)
    annotations = ""
    for k in range(4):
        wnid = list(CLASSES)[k % 2]
        picture(root / f"imagenet/val/{wnid}/ILSVRC2012_val_{k:08}.JPEG", (50, 70), k)
        picture(root / f"tiny/val/images/val_{k}.JPEG", (64, 64), k)
        annotations += f"val_{k}.JPEG\t{wnid}\t0\t0\t62\t62\n"
    (root / "tiny/val/val_annotations.txt").write_text(annotations)
    (root / "tiny/wnids.txt").write_text("\n".join(CLASSES))
    (root / "tiny/words.txt").write_text("\n".join("\t".join(c) for c in CLASSES.items()))
    random = np.random.default_rng(0)
    for name, shape in (("colour", (32, 32, 3)), ("grey", (28, 28)), ("clothes", (28, 28))):
        images, labels = random.integers(0, 256, (12, *shape), np.uint8), np.arange(12) % 2
        np.savez(root / f"{name}.npz", images=images, labels=labels)
    return root


def stand_in(address: str, root: Path) -> str:
    """Where a few pictures are in the place of those at an address."""
    kind, grey = address.partition(":")[0], f"npz:{root}/grey.npz"
    known = {
        "imagenet": f"imagenet:{root}/imagenet",
        "tiny_imagenet": f"tiny_imagenet:{root}/tiny",
        "joined": f"joined:{grey}+npz:{root}/clothes.npz",
        **dict.fromkeys(("mnist", "fashion_mnist"), grey),
        **dict.fromkeys(("cifar10", "svhn", "npz"), f"npz:{root}/colour.npz"),
    }
    return known[kind]


def first_and_last() -> Iterator[object]:
    """Of every sweep; large networks on ImageNet at its size are slow."""
    for name, which in EVERY:
        if name == "conversion":  # starts from runs of its own; see test_conversions
            continue
        for end in (0, -1):
            e = sweeps(name)[which].experiments[end]
            slow = e.image_size == 224 and e.model != "convnet"
            yield pytest.param(name, which, end, marks=pytest.mark.slow if slow else ())


def first_steps(e: Experiment, root: Path, runs: Path) -> list[str]:
    """Names of the events of a run in the setting itself, but for the number of images."""
    large = e.image_size == 224
    few = e.replace(
        data=stand_in(e.data, root), batch_size=4, accumulate=min(e.accumulate, 2),
        norm_batch_size=e.norm_batch_size and min(e.norm_batch_size, 2), epochs=1,
        num_train=4 if large else 8, num_validation=2, learning_rate=1e-3,
    )  # fmt: skip
    run = Run.create(runs, few)
    assert train.train(run, compute=Compute(device="cpu", workers=0)) == "finished"
    return [event["event"] for event in run.events()]


@pytest.mark.parametrize(("name", "which", "end"), list(first_and_last()))
def test_first_steps_can_be_taken(root, tmp_path, name, which, end):
    e = canonical(sweeps(name)[which].experiments)[end]
    events = first_steps(e, root, tmp_path)
    assert ("shift" in events) == (e.shift is not None)
    assert ("probe" in events) == (e.probe is not None)


def test_imagenet_recipe_runs_on_its_layout(root, tmp_path):
    """The recipe in full, with a network of a few seconds."""
    small = recipes.IMAGENET.replace(model="resnet:18:8", norm="group:8")
    assert "epoch" in first_steps(small, root, tmp_path)
