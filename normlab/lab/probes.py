"""What is measured on a network besides its error."""

import copy

import torch
from torch import Tensor, nn

from normlab.lab.tasks import classification


def bytes_saved(model: nn.Module, x: Tensor, labels: Tensor) -> int:
    """Bytes of activations that autograd keeps for the backward pass of one training step.

    Counted once per storage, without parameters and buffers; a property of the network and its
    norms, not of the machine. The model is left as it was.
    """
    model = copy.deepcopy(model).train()
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    storages: dict[int, Tensor] = {}  # the tensors are kept, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        storages.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.autograd.graph.saved_tensors_hooks(keep, keep):
        classification.loss(model(x), labels)
    return sum(t.untyped_storage().nbytes() for at, t in storages.items() if at not in own)
