"""What a fused network is afterwards: copied, compiled and changed; and models that are refused."""

import copy
import pickle

import pytest
import torch
from test_surgery_fuse import Block, C, X, activated, assert_same_training, reused
from torch import nn
from torch.nn import functional as F

import normlab.nn
from normlab.surgery import chain as chains
from normlab.surgery.fuse import fuse
from normlab.surgery.layers import SurgeryError


def network():
    torch.manual_seed(0)
    inner = Block(reused, relu=nn.ReLU(), norm2=nn.BatchNorm2d(C), down=nn.Conv2d(C, C, 1))
    return nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), nn.SiLU(), inner)


def test_32_parameters_buffers_names_and_modes_stay():
    model = network()
    model[1].eval().weight.requires_grad_(False)
    tensors, modes = model.state_dict(keep_vars=True), [m.training for m in model.modules()]
    modules = dict(model.named_modules())
    fuse(model, X)
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(tensors)
    assert all(after[name] is tensor for name, tensor in tensors.items())
    assert all(model.get_submodule(name) is module for name, module in modules.items())
    assert [m.training for m in model.modules()] == modes
    assert not model[1].weight.requires_grad
    network().load_state_dict(model.state_dict())


COPIES = {"deepcopy": copy.deepcopy, "again": lambda m: fuse(m, X)}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copies_are_fused_and_on_their_own(copied, monkeypatch):
    model = copied(fuse(network(), X))
    monkeypatch.setattr(chains, "_one_by_one", None)
    assert_same_training(model, network())


def test_pickled_network_is_fused(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), nn.SiLU())
    twin = copy.deepcopy(model)
    model = pickle.loads(pickle.dumps(fuse(model, X)))
    monkeypatch.setattr(chains, "_one_by_one", None)
    assert_same_training(model, twin)


def test_compiled_network_is_one_graph():
    model = fuse(network(), X).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(X), model(X))


def test_22_hook_added_later_sees_the_norm():
    model, seen = fuse(network(), X).eval(), []
    before = model(X)
    model[1].register_forward_hook(lambda *args: seen.append(args[2]))
    assert torch.allclose(model(X), before, atol=1e-6)
    assert seen[0].min() < -0.5  # SiLU is never below -0.28


def test_activation_replaced_later_is_applied():
    model, twin = fuse(network(), X).eval(), network().eval()
    model[2] = twin[2] = nn.Softplus()
    assert torch.allclose(model(X), twin(X), atol=1e-5)


def test_norm_replaced_later_is_applied():
    model, twin = fuse(network(), X).eval(), network().eval()
    model[1] = twin[1] = nn.GroupNorm(2, C)
    assert torch.allclose(model(X), twin(X), atol=1e-5)


def test_modules_called_one_by_one_give_what_they_gave():
    model, twin = fuse(network(), X).eval(), network().eval()
    for ours, theirs in zip(model[:3], twin[:3]):
        assert torch.allclose(ours(X), theirs(X), atol=1e-5)


def test_module_added_later_runs_and_is_told():
    model, twin = fuse(network(), X).eval(), network().eval()
    model.append(nn.Tanh())
    twin.append(nn.Tanh())
    with pytest.warns(UserWarning, match="Sequential runs unfused, as its submodules changed"):
        y = model(X)
    assert torch.allclose(y, twin(X), atol=1e-5)


def test_attribute_set_later_holds_and_is_told():
    block = Block(lambda b, x: F.relu(b.norm(x)) * b.factor)
    block.factor = 2.0
    fuse(block, X).eval()
    before = block(X)
    block.factor = 3.0
    with pytest.warns(UserWarning, match="Block runs unfused, as factor changed"):
        y = block(X)
    assert torch.allclose(y, 1.5 * before)


def test_residual_of_another_shape_later_is_added():
    model = Block(lambda b, x, r: F.relu(b.norm(x) + r))
    twin = copy.deepcopy(model).eval()
    fuse(model, (X, X)).eval()
    assert torch.allclose(model(X, X[:1]), twin(X, X[:1]), atol=1e-5)


def test_argument_that_is_none_is_a_case_of_its_own():
    model = Block(lambda b, x, r: F.relu(b.norm(x) if r is None else b.norm(x) + r))
    twin = copy.deepcopy(model).eval()
    fuse(model, (X, None)).eval()
    for r in (None, X):
        assert torch.allclose(model(X, r), twin(X, r), atol=1e-5)


def test_19_shared_block_is_fused_under_all_its_names():
    inner = activated(nn.ReLU())()
    model = nn.Sequential(inner, inner)
    fuse(model, X)
    assert model[0] is model[1] is inner
    assert isinstance(inner, chains.Folded)


def test_33_model_that_is_a_norm_becomes_ours_in_place():
    layer = nn.BatchNorm2d(C)
    assert fuse(layer, X) is layer
    assert type(layer) is normlab.nn.BatchNorm2d


def test_where_leaves_other_norms_to_torch():
    model = fuse(network(), X, where="3.*")
    assert type(model[1]) is nn.BatchNorm2d
    assert type(model[3].norm) is normlab.nn.BatchNorm2d


def test_18_model_without_norms_is_refused():
    with pytest.raises(SurgeryError, match="0 norms matched.*it has 1 Conv2d"):
        fuse(nn.Sequential(nn.Conv2d(C, C, 1)), X)


def test_model_that_does_not_run_is_refused():
    with pytest.raises(SurgeryError, match="does not run in training.*more than 1 value"):
        fuse(nn.Sequential(nn.BatchNorm2d(C)), X[:1, :, :1, :1])


def test_f32_wrong_result_is_refused_with_numbers_and_the_model_unchanged(monkeypatch):
    model = network()
    classes = [type(m) for m in model.modules()]
    right = chains.taken_over
    monkeypatch.setattr(chains, "taken_over", lambda *given: ("tanh", right(*given)[1]))
    with pytest.raises(SurgeryError, match=r"differs by \d.*where rounding"):
        fuse(model, X)
    assert [type(m) for m in model.modules()] == classes
    for ours, theirs in zip(model.state_dict().values(), network().state_dict().values()):
        assert torch.equal(ours, theirs)


def test_running_it_for_the_check_leaves_no_trace():
    model = network().append(nn.Dropout())
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    fuse(model, X)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
