"""One step of training: gradients of a batch, added up over parts and processes, and its update."""

import contextlib
import copy
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from normlab import surgery
from normlab.lab import domains, mixing, optimizer, population, start
from normlab.lab.compute import Compute
from normlab.lab.data.batches import Batch
from normlab.lab.experiment import Experiment, ExperimentError
from normlab.lab.processes import Group
from normlab.lab.tasks import classification
from normlab.lab.tasks.classification import Input

_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# what keeps it from sending buffers around before every pass, as torch 2.14 and those before say it
_BUFFERS = "broadcast_buffers"
if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters:
    _BUFFERS = "forward_sync_buffers"
_PURPOSE = 3  # so that dropout draws other numbers than order, augmentation and mixing


class Sums(NamedTuple):
    """Of the images of this process."""

    loss: float
    wrong: int


class Update:
    """A network in training and what changes it.

    Args:
        class_domains: that of each class, for networks with statistics of their own for each.
    """

    def __init__(
        self,
        e: Experiment,
        model: nn.Module,
        group: Group,
        compute: Compute,
        class_domains: tuple[int, ...] | None = None,
    ) -> None:
        self._experiment, self._group, self._domains = e, group, class_domains
        model = model.to(group.device)
        self._format = torch.channels_last if compute.channels_last else torch.contiguous_format
        self.model = model.to(memory_format=torch.channels_last) if compute.channels_last else model
        self._joined = group.size > 1 and _join_statistics(self.model, e)
        self.optimizer = optimizer.build(e, self.model)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=e.precision == "float16")
        self.average = None if e.ema is None else Average(self.model, e.ema)
        self._has_domains = domains.has_domains(self.model)
        self._num_domains = 1 + max(class_domains or (0,))
        self._num_images = 0  # of the batch at hand, in this process
        self._batch_norms = population.batch_norms(self.model)
        self._own_statistics = group.size > 1 and e.norm_batch_size is not None
        forward: Any = self.model
        if group.size > 1 and not self._has_domains:
            still: Any = {_BUFFERS: False}
            forward = DistributedDataParallel(forward, gradient_as_bucket_view=True, **still)
        self._eager = forward
        self._forward = torch.compile(forward) if compute.compile else forward

    def gradients(
        self, batch: Batch, input: Input, *, mix: mixing.Mixing | None, probed: bool
    ) -> Sums:
        """Add up the gradients of the mean loss over the batch of all processes.

        Args:
            probed: hooks on layers are to be called, which generated code may not do.
        """
        e, size = self._experiment, self._group.size
        self.optimizer.zero_grad()
        forward = self._eager if probed else self._forward
        loss_sum, wrong, self._num_images = 0.0, 0, len(batch.labels)
        parts = _parts(batch, e.accumulate)
        for number, part in enumerate(parts, start=1):
            labels = part.labels.to(self._group.device, non_blocking=True)
            x = input.prepare(part.images, self._group.device, part.colour)
            share = 1.0
            if mix is not None:
                x, share = mixing.mixed(x, mix)
            x = x.contiguous(memory_format=self._format)
            with self._held_back(number < len(parts)):
                with self.autocast():
                    logits = self._logits(x, part.labels, forward)
                loss = self._loss(logits.float(), labels, share)
                # so that the mean over processes of these is the mean over all images
                weight = e.batch_size / (max(len(labels), 1) * size)
                self.scaler.scale(loss / weight).backward()
            loss_sum += loss.item() * len(labels)
            wrong += classification.num_wrong(logits.detach(), labels)
        if self._has_domains:  # not all weights take part, which DistributedDataParallel waits for
            given = (p.grad for p in self.model.parameters() if p.grad is not None)
            self._group.average(given, 1 / size)
        return Sums(loss_sum, wrong)

    def apply(self, step: int) -> bool:
        """Change the weights by the gradients; False, and nothing is changed, if they are not
        finite and no smaller scale of them can help."""
        e = self._experiment
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not norm.isfinite() and self.scaler.get_scale() <= 1:  # 1 where it is not used
            return False
        if e.max_gradient_norm is not None and norm > e.max_gradient_norm:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), e.max_gradient_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self._own_statistics:
            floats = (b for b in self.model.buffers() if b.is_floating_point())
            self._group.average(floats, self._num_images / e.batch_size)
        if self.average is not None:
            self.average.take(self.model, step)
        return True

    def prepare(self, step: int, num_steps: int) -> None:
        """Set what depends on the step: learning rate, random numbers, strength, frozen norms."""
        e = self._experiment
        for group in self.optimizer.param_groups:
            group["lr"] = optimizer.learning_rate(e, step, num_steps)
        _seed(self._group.device, [e.seed, _PURPOSE, step, self._group.rank])
        strength = start.strength(e, step / num_steps)
        if strength is not None:
            surgery.set_strength(self.model, strength)
        if e.freeze_statistics is not None and step >= e.freeze_statistics * num_steps:
            for norm in self._batch_norms:
                norm.eval()

    @property
    def judged(self) -> nn.Module:
        """The network that is evaluated: that of averaged weights, if they are averaged."""
        return self.model if self.average is None else self.average.model

    def alone(self, network: nn.Module) -> nn.Module:
        """A copy of one of its networks, whose batch norms wait for no other process."""
        twin = copy.deepcopy(network)
        if self._joined:
            surgery.unsynchronize(twin)
        return twin

    def _loss(self, logits: Tensor, labels: Tensor, share: float) -> Tensor:
        smoothing = self._experiment.label_smoothing or 0.0
        if not len(labels):
            return logits.sum()  # 0, with all gradients 0
        loss = classification.loss(logits, labels, smoothing)
        if share == 1:
            return loss
        others = labels[mixing.neighbours(len(labels)).to(labels.device)]
        return share * loss + (1 - share) * classification.loss(logits, others, smoothing)

    def _logits(self, x: Tensor, labels: Tensor, forward: Any) -> Tensor:
        if not self._has_domains:
            return forward(x)
        belong = domains.of(self._domains, labels)
        if belong is None:
            return domains.forward(self.model, x, None, forward)
        # statistics are shared, so that all processes call the norms that one of them does
        has = self._group.any(*(bool((belong == d).any()) for d in range(self._num_domains)))
        present = [d for d, somewhere in enumerate(has) if somewhere]
        return domains.forward(self.model, x, belong, forward, present)

    def autocast(self) -> Any:
        """What passes are made under."""
        precision = self._experiment.precision
        if precision is None:
            return contextlib.nullcontext()
        return torch.autocast(self._group.device.type, _TYPES[precision])

    @contextlib.contextmanager
    def _held_back(self, more: bool) -> Iterator[None]:
        """Let processes exchange gradients after the last part only."""
        if more and isinstance(self._eager, DistributedDataParallel):
            with self._eager.no_sync():
                yield
        else:
            yield


class Average:
    """A running average of weights and buffers; the first steps count more than later ones.

    average = d · average + (1 - d) · weights,   d = min(decay, (1 + step) / (10 + step))
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def take(self, model: nn.Module, step: int) -> None:
        """Count in the weights after a step, 0 and up."""
        decay = min(self._decay, (1 + step) / (10 + step))
        now = model.state_dict()
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                value.lerp_(now[name].to(value.dtype), 1 - decay)
            else:
                value.copy_(now[name])


def share_of(e: Experiment, group: Group) -> slice | Tensor:
    """Which images of a batch a process computes.

    Images that share statistics, or are mixed with each other, stay together; each of the parts
    that are computed one after the other is divided alike.
    """
    if group.size == 1:
        return slice(None)
    together = e.batch_size // e.accumulate
    unit = e.norm_batch_size or 1
    if (e.mixup is not None or e.cutmix is not None) and unit % 2:
        unit *= 2
    units = together // unit
    first, last = (units * r // group.size * unit for r in (group.rank, group.rank + 1))
    if group.rank == group.size - 1:
        last = together
    starts = torch.arange(e.accumulate) * together
    return (starts[:, None] + torch.arange(first, last)).flatten()


def _join_statistics(model: nn.Module, e: Experiment) -> bool:
    """Let batch norms see all images that are computed together; False if there are none to."""
    if e.norm_batch_size is not None or not population.batch_norms(model):
        return False
    try:
        surgery.synchronize(model)
    except surgery.SurgeryError as error:
        raise ExperimentError(
            f"norm {e.norm!r} cannot share statistics between processes, use norm batch or one "
            f"process: {error}"
        ) from None
    return True


def _parts(batch: Batch, count: int) -> list[Batch]:
    """A batch in equal parts; every one is there, even if it is empty."""
    split = [
        [None] * count if t is None else t.tensor_split(count)
        for t in (batch.images, batch.labels, batch.indices, batch.colour)
    ]
    return [Batch(*part) for part in zip(*split)]


def _seed(device: torch.device, words: list[int]) -> None:
    """Begin the random numbers of the CPU and of one device anew.

    torch.manual_seed sees to all devices there could be, which takes as long as a small layer and
    keeps a note of each call where a GPU is not in use.
    """
    seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    if device.type == "mps":
        torch.mps.manual_seed(seed)
