"""Published numbers: complete, marked, and never in one column with ours."""

import re
from dataclasses import replace

import pytest
from fake_runs import FakeRun

from normlab.lab.analysis import Analysis, analyse
from normlab.lab.experiment import Experiment
from normlab.lab.published import PUBLISHED, SECOND_HAND, SOURCES, Number, published
from normlab.lab.report import published as report

IDS = (
    *("gn-table1", "gn-table2", "gn-renorm", "gn-table3a", "gn-table3b", "gn-resnet101"),
    *("gn-fig6", "gn-table4", "gn-table5", "gn-table6", "gn-table7", "gn-table8"),
    *("cost", "tf-cost", "counts", "tf-batch-size", "cifar-seven", "cifar-batch"),
    *("bn-precise", "bn-nbs", "bn-freeze", "bn-domain", "bn-shared", "bn-leak"),
)


def runs(norms: tuple[str, ...], sizes: tuple[int, ...] = (32,), **fields) -> Analysis:
    found = [
        FakeRun(Experiment(norm=n, batch_size=b, seed=s, **fields), [77.0 + s])
        for n in norms
        for b in sizes
        for s in (0, 1)
    ]
    return analyse(found)


def test_every_experiment_is_there_once() -> None:
    assert tuple(p.id for p in PUBLISHED) == IDS


@pytest.mark.parametrize("p", PUBLISHED, ids=lambda p: p.id)
def test_rows_fit_their_columns_and_name_a_source(p) -> None:
    assert p.source in SOURCES
    assert all(0 < len(n.values) <= len(p.columns) for n in p.numbers)
    assert len({n.what for n in p.numbers}) == len(p.numbers)


@pytest.mark.parametrize(
    ("id", "what", "values"),
    [
        ("gn-table1", "group norm", (24.1,)),
        ("gn-table2", "batch norm, 2", (34.7,)),
        ("gn-table3a", "1 group (layer norm)", (25.3,)),
        ("gn-table3b", "1 channel (instance norm)", (28.4,)),
        ("gn-resnet101", "group norm, 2", (23.0,)),
        ("gn-table6", "ResNet-101, GN, long", (42.3, 37.2)),
        ("gn-table8", "clip 64, batch 4, GN", (74.5, 91.7)),
        ("cifar-seven", "gn", (14.2,)),
    ],
)
def test_numbers_are_the_paper_s(id: str, what: str, values: tuple[float, ...]) -> None:
    assert {n.what: n.values for n in published(id).numbers}[what] == values


def test_unknown_id_names_the_known_ones() -> None:
    with pytest.raises(LookupError, match="nothing published under 'gn-table9'; there are gn-tab"):
        published("gn-table9")


def test_second_hand_numbers_keep_their_mark() -> None:
    p = replace(
        published("gn-table1"),
        numbers=(Number("ours", (23.6,)), Number("theirs", (28.2,), second_hand=True)),
    )
    table = report.beside(runs(("batch",)), p)
    assert [row[1] for row in table.rows] == ["23.6", f"28.2{SECOND_HAND}"]
    assert f"{SECOND_HAND} second-hand" in table.note


def test_a_second_hand_work_is_marked_though_it_has_no_number() -> None:
    table = report.beside(runs(("batch",)), published("bn-nbs"))
    assert f"{SECOND_HAND} second-hand" in table.note
    assert table.rows == (("no number kept", "—"),)


@pytest.mark.parametrize("p", PUBLISHED, ids=lambda p: p.id)
def test_ours_and_theirs_are_in_columns_of_their_own(p) -> None:
    norms = ("batch", "group", "group:8", "group:size=4", "layer", "instance", "none", "torch_bn")
    table = report.beside(runs(norms, (2, 8, 32)), p)
    of_ours = [c.startswith("ours") for c in table.columns]
    for row in table.rows:
        for cell, ours in zip(row[1:], of_ours[1:]):
            assert ours or "77.5" not in cell
            assert not ours or cell in ("—", "77.5 ± 0.7", "0")  # 0 % slower: equal fake times


def test_our_means_stand_at_the_published_norm_and_size() -> None:
    a = runs(("bn", "gn"), (2, 32))
    table = report.beside(a, published("gn-table2"))
    ours = {row[0]: row[-1] for row in table.rows}
    filled = {"batch norm, 2", "batch norm, 32", "group norm, 2", "group norm, 32"}
    assert {what for what, cell in ours.items() if cell != "—"} == filled


def test_layer_and_instance_norm_are_the_ends_of_the_groups() -> None:
    a = runs(("layer", "group:8", "instance", "group"))
    by_groups = {r[0]: r[-1] for r in report.beside(a, published("gn-table3a")).rows}
    by_size = {r[0]: r[-1] for r in report.beside(a, published("gn-table3b")).rows}
    assert by_groups["1 group (layer norm)"] == by_groups["8 groups"] == "77.5 ± 0.7"
    assert by_size["1 channel (instance norm)"] == by_size["16 channels"] == "77.5 ± 0.7"
    assert by_groups["4 groups"] == by_size["4 channels"] == "—"


@pytest.mark.parametrize(
    ("norms", "sizes"),
    [
        pytest.param(("batch",), (2, 32), id="one norm compares nothing"),
        pytest.param(("batch", "group"), (32,), id="one size is no sweep"),
    ],
)
def test_runs_of_another_kind_are_not_put_beside(norms: tuple, sizes: tuple) -> None:
    table = report.beside(runs(norms, sizes), published("gn-table2"))
    assert table.columns == ("what", "published: top-1 error %")
    assert "no run here is of that kind" in table.note


def test_small_runs_are_called_not_comparable_and_why() -> None:
    a = runs(("batch", "group"), num_train=512, image_size=14, epochs=4)
    note = report.beside(a, published("gn-table1")).note
    for reason in (
        "Not comparable: the data is relit_digits; the network is cifar_resnet:8; "
        "4 epochs instead of 100; batches of 32 instead of 256; only 512 training images; "
        "images of 14 pixels",
    ):
        assert reason in note
    assert "2 seeds" in note


def test_the_published_setting_is_called_comparable() -> None:
    full = {"data": "folder:imagenet", "model": "torchvision:resnet50", "epochs": 100}
    full |= {"image_size": 224}
    table = report.beside(runs(("batch", "group"), (256,), **full), published("gn-table1"))
    assert "Comparable: data, network, epochs and batch are the published ones" in table.note
    assert "Not comparable" not in table.note
    assert table.columns[-1] == "ours"


@pytest.mark.parametrize(
    ("id", "address", "same"),
    [
        ("gn-table1", "imagenet:data/imagenet", True),
        ("gn-table1", "folder:/data/imagenet", True),
        ("gn-table1", "tiny_imagenet:data/tiny-imagenet-10", False),
        ("cifar-seven", "npz:data/cifar10", True),
        ("cifar-seven", "cifar100", False),
    ],
)
def test_data_is_the_published_one_under_each_of_its_addresses(id, address, same) -> None:
    note = report.beside(runs(("batch", "group", "none"), data=address), published(id)).note
    assert ("the data is" in note) is not same


@pytest.mark.parametrize(
    ("model", "same"),
    [
        ("vgg:16:64:4096", True),
        ("torchvision:vgg16_bn", True),
        ("vgg:16", False),
        ("vgg:16:16", False),
        ("vgg:11", False),
    ],
)
def test_a_network_is_the_published_one_under_each_of_its_addresses(model: str, same: bool) -> None:
    a = runs(("none", "batch", "group"), model=model, data="folder:imagenet")
    table = report.beside(a, published("gn-fig6"))
    assert [row[-1] for row in table.rows] == ["77.5 ± 0.7"] * 3
    assert ("the network is" in table.note) is not same


def test_section_shows_only_what_these_runs_have_something_beside() -> None:
    section = report.section(runs(("batch", "group"), (2, 32)), [])
    assert section is not None
    shown = [table.title.partition(":")[0] for table in section.tables]
    assert shown == ["gn-table1", "gn-table2", "gn-resnet101", "tf-cost"]
    assert report.section(analyse([]), []) is None


def test_tables_of_all_experiments_can_be_had() -> None:
    found = report.every(analyse([]))
    assert [re.match(r"[\w-]+", table.title)[0] for table in found] == list(IDS)
    assert all(table.rows for table in found)
