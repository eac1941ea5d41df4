"""Models that cannot be converted say why, and stay as they are. Numbers are RELIABILITY's."""

import copy
import re
import warnings

import pytest
import torch
from surgery_nets import assert_refused, assert_same_picture, picture
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from normlab import norms, surgery
from normlab.surgery import SurgeryError


def chain(*widths):
    return nn.Sequential(*(nn.BatchNorm2d(w) for w in widths))


def test_17_all_widths_that_do_not_split_are_listed_with_a_way_out():
    message = (
        r"2 of 4 norms cannot become 'group:4':\n"
        r"  1: num_channels \(58\) must be divisible by num_groups \(4\); divisors of 58: 1, 2, 29"
        r", 58\n  3: .*\(6\).*\nAll channels split into 2 groups; 'group' chooses"
    )
    assert_refused(chain(8, 58, 16, 6), message, "group:4")


def test_18_model_without_norms_says_what_it_has():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    assert_refused(
        model, "0 norms matched, so there is nothing to replace; it has 1 Linear, 1 ReLU"
    )


def test_18_where_that_matches_nothing_is_quoted():
    assert_refused(chain(4, 4), r"0 norms matched where='layer9\.\*' of 2", where="layer9.*")


def test_18_only_norms_without_a_rule_say_so():
    assert_refused(
        nn.Sequential(nn.LayerNorm(4)), "0 norms matched.*1 were left: 0 normalizes over"
    )


class Rectified(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Rectified(4), "no rule for .*Rectified, which may do more than normalize"),
        (nn.LayerNorm(4), "normalizes over the last axes"),
        (nn.RMSNorm(4), "normalizes over the last axes"),
        (nn.LocalResponseNorm(2), "it has no statistics of its own"),
    ],
    ids=["subclass", "LayerNorm", "RMSNorm", "LocalResponseNorm"],
)
def test_21_norms_without_a_rule_are_left_and_named(layer, reason):
    model = nn.Sequential(layer, nn.BatchNorm2d(4))
    planned = surgery.plan(model, "group:2")
    planned.commit()
    assert model[0] is layer
    assert isinstance(model[1], norms.GroupNorm)
    assert re.search(f"left: 1 {type(layer).__name__}: {reason}", str(planned))


def test_21_norms_without_a_rule_and_functional_norms_are_logged(caplog):
    model = nn.Sequential(Rectified(4), Functional())
    surgery.convert(model, "group:2")
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert "left: 1 Rectified: no rule for" in caplog.text
    assert "2 calls of F.batch_norm" in caplog.text
    caplog.clear()
    surgery.convert(nn.Sequential(nn.LayerNorm(4), nn.BatchNorm2d(4)), "group:2")
    assert not caplog.records


def test_21_norms_inside_a_norm_without_a_rule_are_left_with_it():
    timm = pytest.importorskip("timm.layers")
    model = nn.Sequential(timm.SplitBatchNorm2d(4), nn.BatchNorm2d(4))
    surgery.convert(model, "group:2")
    assert type(model[0]).__name__ == "SplitBatchNorm2d"
    assert all(isinstance(m, nn.BatchNorm2d) for m in model[0].aux_bn)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda bn: parametrize.register_parametrization(bn, "weight", nn.Identity()),
        lambda bn: nn.utils.parametrizations.weight_norm(bn, "weight", dim=0),
    ],
    ids=["parametrize", "weight_norm"],
)
def test_23_parametrized_norm_is_refused_by_name(wrap):
    model = chain(4, 4)
    wrap(model[1])
    assert_refused(model, r"1 of 2 norms cannot.*\n  1: its weight is parametrized; remove that")


def test_23_pruned_norm_is_refused_by_name():
    from torch.nn.utils import prune

    model = chain(4, 4)
    prune.l1_unstructured(model[0], "weight", 1)
    assert_refused(model, "  0: has a parameter weight_orig, so its weight is computed")


@pytest.mark.parametrize("lazy", [nn.LazyBatchNorm2d, nn.LazyInstanceNorm2d])
def test_24_lazy_norm_is_refused_until_a_batch_was_run(lazy):
    options = {"affine": True} if lazy is nn.LazyInstanceNorm2d else {}
    model = nn.Sequential(nn.BatchNorm2d(4), lazy(**options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lazy modules are a feature under development
        assert_refused(model, "  1: has no size yet; run one batch first", "layer")
        model(torch.randn(2, 4, 3, 3))
    surgery.convert(model, "layer")
    assert isinstance(model[1], norms.LayerNorm)


@pytest.fixture
def quantization():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is deprecated
        yield (
            pytest.importorskip("torch.ao.nn.quantized"),
            pytest.importorskip("torch.ao.nn.intrinsic.qat"),
        )


def test_25_quantized_batch_norm_is_refused(quantization):
    model = nn.Sequential(nn.BatchNorm2d(4), quantization[0].BatchNorm2d(4))
    assert_refused(model, "  1: BatchNorm2d is quantized; convert before quantizing")


def test_26_batch_norm_within_a_fused_convolution_is_refused(quantization):
    qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
    model = nn.Sequential(quantization[1].ConvBn2d(3, 4, 1, qconfig=qconfig), nn.BatchNorm2d(4))
    assert_refused(model, r"  0.bn: is part of a ConvBn2d, which computes with it; convert before")
    surgery.convert(model, "group:2", where="1")
    assert isinstance(model[1], norms.GroupNorm)


@pytest.mark.parametrize("at", ["whole", "part"])
def test_27_scripted_model_is_refused(at):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        scripted = torch.jit.script(chain(4))
        model = scripted if at == "whole" else nn.Sequential(scripted, nn.BatchNorm2d(4))
        with pytest.raises(SurgeryError, match="ScriptModule.*convert before torch.jit.script"):
            surgery.convert(model, "group")


def test_28_exported_program_is_refused():
    program = torch.export.export(chain(4).eval(), (torch.randn(2, 4, 3, 3),))
    for model in (program, program.module(), torch.export.unflatten(program)):
        with pytest.raises(SurgeryError, match="convert before torch.export"):
            surgery.convert(model, "group")


@pytest.mark.parametrize("at", ["whole", "part"])
def test_31_wrapped_model_is_refused(at):
    wrapped = nn.DataParallel(chain(4))
    model = wrapped if at == "whole" else nn.Sequential(wrapped)
    assert_refused(model, "is wrapped in DataParallel, .*; convert before wrapping")


@pytest.fixture
def one_process():
    """A process group of this process alone."""
    from torch import distributed

    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    distributed.destroy_process_group()


def fully_shard(model):
    from torch.distributed import fsdp

    return fsdp.fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (1,)))


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (nn.parallel.DistributedDataParallel, "DistributedDataParallel"),
        (fully_shard, "fully_shard"),
    ],
    ids=["DDP", "FSDP"],
)
def test_31_distributed_model_is_refused(wrap, name, one_process):
    with pytest.raises(SurgeryError, match=f"is wrapped in {name}, .*; convert before wrapping"):
        surgery.convert(wrap(chain(4)), "group")


class Functional(nn.Module):
    def __init__(self, depends_on_data=False):
        super().__init__()
        self.bn = nn.BatchNorm2d(4)
        self.depends_on_data = depends_on_data

    def forward(self, x):
        if self.depends_on_data and x.sum() > 0:
            x = -x
        x = F.batch_norm(self.bn(x), None, None, training=True)
        return F.group_norm(F.batch_norm(x, None, None, training=True), 2)


def test_37_functional_norms_are_counted():
    text = str(surgery.plan(Functional(), "group:2"))
    assert "outside layers: 2 calls of F.batch_norm, which cannot be swapped" in text
    assert "outside layers: 1 call of F.group_norm, which cannot be swapped" in text


def test_37_functional_norms_are_named_where_they_cannot_be_counted():
    text = str(surgery.plan(Functional(depends_on_data=True), "group:2"))
    assert (
        "1 Functional names F.batch_norm in forward, which cannot be swapped (nor counted" in text
    )


def test_37_functional_norms_alone_are_named_in_the_refusal():
    model = Functional()
    model.bn = nn.Identity()
    assert_refused(model, "0 norms matched.*; 2 calls of F.batch_norm, which cannot be swapped")


class ReadOnly(nn.Module):
    """The layer is there under `bn`, which nobody can set."""

    def __init__(self):
        super().__init__()
        self._modules["bn"] = nn.BatchNorm2d(4)
        self.other = nn.BatchNorm2d(4)

    @property
    def bn(self):
        return self._modules["bn"]


class Slotted(nn.Module):
    __slots__ = ("bn",)

    def __init__(self):
        super().__init__()
        self.other = nn.BatchNorm2d(4)
        self.bn = nn.BatchNorm2d(4)


class Guarded(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(4)
        self.is_made = True

    def __setattr__(self, name, value):
        if getattr(self, "is_made", False):
            raise RuntimeError("sealed")
        super().__setattr__(name, value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (ReadOnly, "  bn: bn is a read-only attribute or slot of ReadOnly"),
        (Slotted, "  bn: bn is a read-only attribute or slot of Slotted"),
        (Guarded, "  bn: its owner Guarded has a __setattr__ of its own"),
    ],
)
def test_39_owner_that_takes_no_other_layer_is_refused(make, message):
    assert_refused(make(), message)


def test_39_layer_kept_in_a_list_besides_is_refused():
    model = chain(4, 4)
    model[0].plain = [model[1]]
    assert_refused(model, "  1: is also in BatchNorm2d.plain, where the old layer would stay")


def test_39_forward_replaced_on_the_instance_is_refused():
    model = chain(4)
    model[0].forward = lambda x: x
    assert_refused(model, "  0: its forward was replaced on the instance, and would be lost")


def test_39_owner_that_refuses_in_the_middle_leaves_nothing_behind(monkeypatch):
    """What no plan can foresee: the second of two layers does not go in."""
    model = nn.Sequential(chain(4), chain(4))
    planned = surgery.plan(model, "group:2")
    before = picture(model)
    add = type(model).__setattr__

    def refuse(self, name, value):
        if self is model[1]:
            raise TypeError("full")
        add(self, name, value)

    monkeypatch.setattr(nn.Sequential, "__setattr__", refuse)
    with pytest.raises(SurgeryError, match="a layer cannot be exchanged, so none was: full"):
        planned.commit()
    monkeypatch.undo()
    assert_same_picture(model, before)


def test_f32_constructor_that_fails_at_layer_7_of_20_changes_nothing(monkeypatch):
    model = nn.Sequential(
        *(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) for _ in range(20))
    )
    model[3][1].register_forward_hook(lambda *_: None)
    model[5].eval()
    made, tries = [], 20  # each is first made on meta, to see whether it is there already
    init = norms.GroupNorm.__init__

    def fail(self, *args, **options):
        made.append(self)
        if len(made) == tries + 7:
            raise MemoryError("layer 7")
        init(self, *args, **options)

    before = picture(model)
    monkeypatch.setattr(norms.GroupNorm, "__init__", fail)
    with pytest.raises(MemoryError, match="layer 7"):
        surgery.convert(model, "group:2")
    assert_same_picture(model, before)


def test_f32_model_that_fails_on_the_sample_afterwards_is_put_back():
    model = nn.Sequential(nn.BatchNorm2d(4))
    model.append(Reader(model))
    assert_refused(model, "sample_input does not pass through the model", sample_input=SAMPLE)


SAMPLE = torch.randn(2, 4, 3, 3)


class Reader(nn.Module):
    """A layer that reads what only a batch norm has, of another one."""

    def __init__(self, model):
        super().__init__()
        self.read = lambda: model[0].running_mean

    def forward(self, x):
        if self.read() is None:
            raise ValueError("no statistics")
        return x


def test_activation_without_a_name_is_refused_where_its_owner_reads_the_layer():
    timm = pytest.importorskip("timm.layers")

    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = timm.BatchNormAct2d(4, act_layer=nn.Mish)

        def forward(self, x):
            return self.norm(x) * self.norm.weight.sum()

    assert_refused(Owner(), r"Mish inside it has no name here .*, but Owner reads norm.weight")


def test_picture_sees_what_changes():
    """The check of this file can fail."""
    model = chain(4)
    before = picture(model)
    other = copy.deepcopy(model)
    surgery.convert(model, "group:2")
    assert picture(model) != before
    assert picture(other) != before


def test_21_block_called_after_norms_is_no_norm():
    class NormFreeBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))
            self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    model = surgery.convert(nn.Sequential(NormFreeBlock()), "group:2")
    assert isinstance(model[0].bn, norms.GroupNorm)
