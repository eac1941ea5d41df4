"""Small networks to operate on, and what a conversion could change of one."""

import pytest
import torch
from oracle import sample
from torch import nn
from torch.nn.utils import parametrize

from normlab import surgery
from normlab.surgery import SurgeryError

C = 32


def trained(model, seed=0):
    """The model with parameters and running statistics as training leaves them: all different."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is None or isinstance(module, nn.Conv2d | nn.Linear):
                    continue
                if not tensor.is_floating_point():
                    tensor.fill_(7)
                    continue
                value = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(value * 2 - 1 if "mean" in name or name == "bias" else value + 0.3)
    return model


class Net(nn.Module):
    """Convolutions and batch norms, in evaluation, as they come from training."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, C, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(C, eps=1e-3, momentum=0.2)
        self.blocks = nn.Sequential(nn.Conv2d(C, 24, 3), nn.BatchNorm2d(24), nn.ReLU())
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = self.blocks(self.bn1(self.conv1(x)).relu())
        return self.head(x.mean((2, 3)))


def net(seed=0):
    torch.manual_seed(seed)
    return trained(Net(), seed).eval()


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_state(model, state):
    now = model.state_dict()
    assert list(now) == list(state)
    assert all(torch.equal(now[name], value) for name, value in state.items())


X = sample(4, 3, 8, 8)


def assert_refused(model, message, spec="group", **options):
    """SurgeryError with this message, and a model that is what it was, bit for bit."""
    before = picture(model)
    with pytest.raises(SurgeryError, match=message):
        surgery.convert(model, spec, **options)
    assert_same_picture(model, before)


def assert_same_picture(model, before):
    """The same objects with the same values."""
    after = picture(model)
    assert before.keys() == after.keys()
    for key, (identity, value) in before.items():
        assert after[key][0] == identity
        same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
        assert same(after[key][1], value)


def picture(model):
    """All that a conversion could change: modules, hooks, modes, parameters, buffers."""
    found = {}
    for name, module in model.named_modules(remove_duplicate=False):
        hooks = [id(hook) for key in vars(module) if "hooks" in key and "state" not in key
                 for hook in (getattr(module, key) or {}).values()]  # fmt: skip
        found[name] = (id(module), (module.training, hooks))
        for kind in ("_parameters", "_buffers"):
            tensors = vars(module).get(kind, {})
            for key, tensor in tensors.items():
                if isinstance(tensor, torch.Tensor) and not parametrize.is_parametrized(module):
                    lazy = nn.parameter.is_lazy(tensor) or tensor.is_quantized
                    value = None if lazy else tensor.detach().clone()
                    found[f"{name}.{key}"] = (id(tensor), value)
    return found
