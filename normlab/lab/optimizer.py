"""The optimizer of an experiment and its learning rate at each step."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from normlab.lab.experiment import Experiment
from normlab.layer import Norm

_NORMS = (
    Norm,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


def build(experiment: Experiment, model: nn.Module) -> torch.optim.Optimizer:
    """SGD or Adam, with the parameters of norms in a group of their own weight decay."""
    of_norms = list(_norm_parameters(model))
    known = {id(p) for p in of_norms}
    others = [p for p in model.parameters() if id(p) not in known]
    decay = experiment.weight_decay
    norm_decay = experiment.norm_weight_decay
    groups: list[dict[str, Any]] = [
        {"params": others, "weight_decay": decay},
        {"params": of_norms, "weight_decay": decay if norm_decay is None else norm_decay},
    ]
    groups = [g for g in groups if g["params"]]
    if experiment.optimizer == "adam":
        return torch.optim.Adam(groups, lr=experiment.learning_rate, fused=True)
    sgd = torch.optim.SGD(
        groups, lr=experiment.learning_rate, momentum=experiment.momentum, fused=True
    )
    if experiment.momentum:
        # torch 2.14's fused step fails on parameters with momentum beside others without it yet, as
        # where the first steps saw one of several domains; from zero it is the first gradient, too
        for parameter in model.parameters():
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def learning_rate(experiment: Experiment, step: int, num_steps: int) -> float:
    """The learning rate of a step, counted from 0.

    >>> [learning_rate(Experiment(warmup=0.5), step, 4) for step in range(4)]
    [0.05, 0.1, 0.1, 0.05]
    """
    peak = experiment.learning_rate
    if experiment.learning_rate_batch is not None:
        peak *= experiment.batch_size / experiment.learning_rate_batch
    warmup = round(experiment.warmup * num_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * _SCHEDULES[experiment.schedule](experiment, step, warmup, num_steps)


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors, for a checkpoint."""
    return {
        f"optimizer.{index}.{key}": value
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def load_state_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `state_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            index, _, key = rest.partition(".")
            state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _norm_parameters(model: nn.Module) -> Iterable[nn.Parameter]:
    seen = set()
    for module in model.modules():
        if isinstance(module, _NORMS):
            for parameter in module.parameters(recurse=False):
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield parameter


def _cosine(experiment: Experiment, step: int, warmup: int, num_steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup)))


def _step(experiment: Experiment, step: int, warmup: int, num_steps: int) -> float:
    return 0.1 ** sum(step >= milestone * num_steps for milestone in experiment.milestones)


_SCHEDULES = {"cosine": _cosine, "step": _step, "constant": lambda *_: 1.0}
