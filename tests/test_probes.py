"""Probes: what they measure, by numbers worked out by hand, and on which layers."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as rematerialized

import normlab
from normlab.lab import models, probes
from normlab.lab.analysis_probes import probes as read
from normlab.lab.experiment import Experiment, ExperimentError
from normlab.lab.runs import Run


def recorded(model: nn.Module, x: torch.Tensor, probe: str) -> dict[str, dict[str, Any]]:
    """What one step of training records, by layer."""
    recorder = probes.Recorder(model, probe)
    with recorder.watching(0, 1):
        y = model(x)
        if y.requires_grad:
            y.sum().backward()
    return {found["layer"]: found for found in recorder.take()}


# What is measured


def test_percentiles_equal_numpys():
    x = torch.randn(16, 8, 4, 8, generator=torch.Generator().manual_seed(0))
    assert x.numel() == probes.MAX_VALUES
    assert probes.percentiles(x) == np.percentile(x.double().numpy(), [1, 20, 80, 99]).tolist()


def test_percentiles_between_two_values_go_by_proportion():
    # of 0 and 10, percentile p lies at p/100 of the way
    assert probes.percentiles(torch.tensor([10.0, 0.0])) == pytest.approx([0.1, 2.0, 8.0, 9.9])


@pytest.mark.parametrize("stride", [1, 64], ids=["by value", "64: equal distances meet one column"])
def test_sampled_percentiles_are_those_of_all_values(stride):
    # each value of 0 … 1 once, in an order of columns of 64. A stratified sample of n values has
    # a quantile within sqrt(p(1 - p)/n) of it in standard deviation, 0.0063 at most; five of them
    count = 64 * probes.MAX_VALUES
    x = torch.arange(count, dtype=torch.float32) / count
    x = x.reshape(stride, -1).T.flatten()
    for p, found in zip(probes.PERCENTILES, probes.percentiles(x)):
        assert abs(found - p / 100) < 5 * math.sqrt(p / 100 * (1 - p / 100) / probes.MAX_VALUES)


def test_norm_is_recorded_before_it_normalizes():
    layer = nn.Sequential(normlab.norm("batch", 2, activation="relu"))
    x = torch.tensor([[1.0, -3.0], [5.0, 1.0]])
    found = recorded(layer, x, "0")["0"]
    assert found["place"] == "input"
    assert (found["mean"], found["var"]) == (1, 8)  # of 1, 5, -3, 1: squares 0, 16, 16, 0
    assert found["percentiles"]["99"] == pytest.approx(1 + 4 * 0.97)  # 2.97 of 3 steps up


def test_layer_without_norm_is_recorded_after_it():
    linear = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[2.0], [0.0]]))
    found = recorded(nn.Sequential(linear), torch.tensor([[1.0], [3.0]]), "0")["0"]
    assert found["place"] == "output"
    assert (found["mean"], found["var"]) == (2, 6)  # of 2, 0, 6, 0
    assert found["dead"] == 0.5
    # the sum's gradient by each of the two weights is 1 + 3
    assert found["gradient_norm"] == pytest.approx(math.sqrt(2) * 4, rel=1e-6)


def test_activation_in_place_leaves_what_was_recorded():
    model = nn.Sequential(normlab.norm("none", 1), nn.ReLU(inplace=True))
    found = recorded(model, torch.tensor([[-1.0], [-1.0]]), "*")
    assert (found["0"]["mean"], found["0"]["dead"]) == (-1, 0)
    assert (found["1"]["mean"], found["1"]["dead"]) == (0, 1)


@pytest.mark.parametrize("shape", [(4, 2), (4, 2, 3), (4, 2, 3, 3)], ids=str)
def test_dead_units_are_channels_that_are_zero_everywhere(shape):
    x = torch.zeros(shape)
    x[3, 1] = -1  # alive in one image only
    found = recorded(nn.Sequential(nn.Identity()), x, "0")["0"]
    assert found["dead"] == 0.5


def test_dead_units_of_layer_norm_are_on_its_own_axis():
    layer = nn.LayerNorm(3)
    nn.init.zeros_(layer.weight[:2])
    x = torch.randn(2, 5, 3)
    assert recorded(nn.Sequential(layer), x, "0")["0"]["dead"] == pytest.approx(2 / 3)


def test_features_are_what_enters_the_last_linear_layer():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3, bias=False))
    nn.init.eye_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    found = recorded(model, torch.tensor([[0.0, 1.0], [0.0, 5.0]]), "features")["features"]
    assert (found["place"], found["mean"], found["dead"]) == ("features", 1.5, 0.5)
    # each of three outputs' weights gets (0, 6)
    assert found["gradient_norm"] == pytest.approx(math.sqrt(3) * 6, rel=1e-6)


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm1d(1), normlab.nn.BatchNorm1d(1), normlab.norm("batch", 1)],
    ids=["torch", "normlab.nn", "normlab"],
)
def test_noise_and_gap_compare_the_batch_with_running_statistics(layer):
    layer.running_mean.fill_(1.0)
    layer.running_var.fill_(4.0)
    layer.num_batches_tracked.fill_(3)
    x = torch.tensor([[1.0], [3.0], [5.0], [7.0]])  # mean 4, unbiased variance 20/3
    found = recorded(nn.Sequential(layer), x, "0")["0"]
    assert found["noise"] == pytest.approx((4 - 1) / 2, rel=1e-5)  # eps adds 1e-5 / 8
    assert found["gap"] == pytest.approx(math.log((20 / 3) / 4), rel=1e-5)


def test_noise_is_that_of_the_images_that_share_statistics():
    layer = normlab.norm("batch", 1, norm_batch_size=2)
    layer.num_batches_tracked.fill_(1)  # running mean 0, variance 1
    x = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]])  # slices of mean 2 and -2; the batch's is 0
    found = recorded(nn.Sequential(layer), x, "0")["0"]
    assert found["noise"] == pytest.approx(2, rel=1e-5)
    assert found["gap"] == pytest.approx(math.log(2), rel=1e-4)  # both slices: unbiased variance 2


def test_statistics_of_groups_stand_for_their_channels():
    means, _ = probes._statistics(torch.tensor([[1.0, 3.0, 5.0, 9.0]] * 2), "n (g=2 c) ... -> g")
    assert means.tolist() == [[2, 2, 7, 7]]


@pytest.mark.parametrize("norm", ["group:2", "layer", "instance", "none"])
def test_norms_of_one_sample_have_neither_noise_nor_gap(norm):
    found = recorded(nn.Sequential(normlab.norm(norm, 4)), torch.randn(2, 4, 3, 3), "0")["0"]
    assert not {"noise", "gap"} & found.keys()


def test_first_batch_has_nothing_to_be_compared_with():
    found = recorded(nn.Sequential(normlab.norm("batch", 2)), torch.randn(4, 2), "0")["0"]
    assert not {"noise", "gap"} & found.keys()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_precisions_are_recorded(dtype):
    x = torch.full((2, 3), 300.0, dtype=dtype)  # whose square is too large for float16
    found = recorded(nn.Sequential(nn.Identity()), x, "0")["0"]
    assert (found["mean"], found["var"]) == (300, 0)


@pytest.mark.parametrize("value", [math.inf, math.nan], ids=str)
def test_values_that_are_not_finite_become_null(tmp_path, value):
    run = Run.create(tmp_path, Experiment())
    layer = normlab.norm("batch", 3)
    layer.num_batches_tracked.fill_(1)
    found = recorded(nn.Sequential(layer), torch.full((2, 3), value), "0")
    run.log_all("probe", [{"epoch": 1, "step": 0, "samples": 0, **found["0"]}])
    assert [run.events()[0][key] for key in ("mean", "var", "noise", "gap")] == [None] * 4
    assert read(run)[0].fan is None


# Which layers


@pytest.mark.parametrize(
    ("probe", "expected"),
    [
        pytest.param("1", ["1"], id="a name"),
        pytest.param("3", ["3"], id="a block as a whole"),
        pytest.param("*.bn?", ["3.bn1", "3.bn2"], id="a glob"),
        pytest.param(" *.bn2 , 1,1 ", ["1", "3.bn2"], id="several, in the order of the model"),
        pytest.param("3*", ["3.conv1", "3.bn1", "3.relu", "3.conv2", "3.bn2"], id="leaves only"),
        pytest.param("features", ["features"], id="pooled features"),
    ],
)
def test_layers_are_chosen_by_name_and_glob(probe, expected):
    found = recorded(models.build("cifar_resnet:8", 10, norm="group:4"), IMAGES, probe)
    assert [name for name in found if name[0] in "13f"] == expected


IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def test_shared_layer_is_recorded_once_at_its_first_call():
    shared = nn.ReLU()
    model = nn.Sequential(shared, nn.Identity(), shared)
    found = recorded(model, torch.tensor([[-1.0, 2.0]]), "*")
    assert list(found) == ["0", "1"]
    assert found["0"]["mean"] == 1


def test_recomputed_layer_is_recorded_at_its_first_call():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = normlab.norm("batch", 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return rematerialized(self.norm, x, use_reentrant=False)

    # the second pass, in backward, has running statistics to compare with
    assert "noise" not in recorded(Twice(), torch.randn(4, 2), "norm")["norm"]


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        pytest.param("layr1", "no layer is called 'layr1'; did you mean 'layer1'", id="misspelt"),
        pytest.param("bn1,x*", r"no layer is called 'x\*'", id="one of several"),
        pytest.param(" , ", "names no layer; leave it out to record none", id="empty"),
    ],
)
def test_names_of_no_layer_are_refused(probe, message):
    with torch.device("meta"):
        model = models.build("torchvision:resnet18", 10)
    with pytest.raises(ExperimentError, match=message):
        probes.Recorder(model, probe)


def test_network_without_linear_layer_has_no_features():
    with pytest.raises(ExperimentError, match="this network has none; name the layer"):
        probes.Recorder(nn.Sequential(nn.Conv2d(3, 4, 1)), "features")


def test_layer_that_gives_several_tensors_is_refused():
    with pytest.raises(ExperimentError, match=r"output of 0 .* not tuple; name a layer inside"):
        recorded(nn.Sequential(nn.LSTM(2, 2)), torch.randn(3, 1, 2), "0")


def test_layer_that_is_never_called_is_said_once():
    model = nn.ModuleDict({"used": nn.Identity(), "other": nn.Identity()})
    recorder = probes.Recorder(model, "*")

    def taken() -> list[str]:
        with recorder.watching(0, 1):
            model["used"](torch.ones(2, 2))
        return [found["layer"] for found in recorder.take()]

    with pytest.warns(UserWarning, match="never called other"):
        assert taken() == ["used"]
    assert taken() == ["used"]  # warnings are errors


# Converted, fused and other layers


@pytest.mark.parametrize("change", ["convert", "shrink", "fuse", "torch"])
def test_changed_networks_are_recorded_before_their_norms(change):
    model = models.build("cifar_resnet:8", 10)
    x = IMAGES.clone()
    expected = recorded(model, x, "1")["1"]["percentiles"]
    if change == "convert":
        model = normlab.convert(model, "group:4")
    elif change == "shrink":
        model = normlab.convert(model, "group:4", strength=0.5)
    elif change == "fuse":
        model = normlab.fuse(model, x)
    else:
        model[1] = nn.BatchNorm2d(16)
    found = recorded(model, x, "1")["1"]
    assert found["place"] == "input"
    assert found["percentiles"] == pytest.approx(expected, rel=1e-5)


def test_hooks_leave_nothing_behind():
    model = models.build("cifar_resnet:8", 10, norm="batch")
    before = [{k: v for k, v in vars(m).items() if "hook" in k} for m in model.modules()]
    keys = list(model.state_dict())
    assert not any(hooks for layer in before for hooks in layer.values())
    recorder = probes.Recorder(model, "*,features")
    with pytest.raises(RuntimeError, match="channels"), recorder.watching(0, 1):
        model(torch.ones(2, 5, 12, 12))
    after = [{k: v for k, v in vars(m).items() if "hook" in k} for m in model.modules()]
    assert after == before
    assert list(model.state_dict()) == keys


def test_vgg_responses_are_called_as_in_the_paper():
    model = models.build("vgg:16:4", 10, norm="none")
    found = recorded(model, torch.randn(2, 3, 32, 32), "conv5_3,norm5_3")
    assert found["norm5_3"]["percentiles"] == found["conv5_3"]["percentiles"]
    assert model.conv5_3.out_channels == 32
