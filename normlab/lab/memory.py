"""How many bytes a training step of a network needs, and keeps for its backward pass."""

import copy
import itertools
import os

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


def bytes_peak(model: nn.Module, x: Tensor, labels: Tensor) -> int | None:
    """Most bytes that the network and one forward and backward pass on the CPU hold at once.

    Parameters, buffers, gradients, activations and what kernels allocate meanwhile, as torch's
    allocator counts them: no property of the process, whose resident memory a worker's earlier runs
    have raised for good. The optimizer's state is not in it. The model is left as it was. None
    while a profiler of the caller runs, since there is but one.
    """
    if torch.autograd.profiler._is_profiler_enabled:
        return None
    model = copy.deepcopy(model).train()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler writes about itself to stderr
    with torch.random.fork_rng([]), torch.autograd.profiler.profile(profile_memory=True) as found:
        classification.loss(model(x), labels).backward()
    events = [e for e in found.kineto_results.events() if e.name() == "[memory]"]
    held = itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    own = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    return own + max(held, default=0)
