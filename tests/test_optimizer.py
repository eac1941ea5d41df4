"""Learning rates and parameter groups, by hand."""

import pytest
import torch

from normlab.lab import models, optimizer
from normlab.lab.experiment import Experiment


def rates(num_steps: int = 100, **fields) -> list[float]:
    e = Experiment(warmup=0.0, **fields)
    return [optimizer.learning_rate(e, step, num_steps) for step in range(num_steps)]


def test_learning_rate_scales_with_the_batch():
    assert rates(batch_size=8, schedule="constant")[0] == pytest.approx(0.1 * 8 / 32)
    assert rates(batch_size=8, schedule="constant", learning_rate_batch=None)[0] == 0.1


def test_step_schedule_divides_by_ten_at_its_milestones():
    values = rates(schedule="step", milestones=(0.3, 0.6, 0.9))
    assert [round(values[s], 6) for s in (0, 29, 30, 59, 60, 89, 90)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.0001]
    )


def test_cosine_schedule_falls_from_the_peak_to_nearly_nothing():
    values = rates(schedule="cosine")
    assert values[0] == 0.1
    assert values[50] == pytest.approx(0.05)
    assert values == sorted(values, reverse=True)
    assert 0 < values[-1] < 1e-4


def test_warmup_rises_linearly_and_ends_at_the_peak():
    e = Experiment(warmup=0.1, schedule="constant")
    values = [optimizer.learning_rate(e, step, 100) for step in range(12)]
    assert values[:10] == pytest.approx([0.01 * k for k in range(1, 11)])
    assert values[10:] == [0.1, 0.1]


def test_warmup_over_the_whole_training_is_possible():
    e = Experiment(warmup=1.0)
    assert optimizer.learning_rate(e, 9, 10) == pytest.approx(0.1)


@pytest.mark.parametrize("norm", ["batch", "torch_bn", "group", "batch_instance"])
def test_norm_parameters_have_their_own_weight_decay(norm):
    model = models.build("cifar_resnet:8", 10, norm=norm)
    others, of_norms = optimizer.build(
        Experiment(weight_decay=0.1, norm_weight_decay=0.0), model
    ).param_groups
    assert (others["weight_decay"], of_norms["weight_decay"]) == (0.1, 0.0)
    assert all(p.dim() == 1 for p in of_norms["params"])
    assert len(of_norms["params"]) == 7 * (3 if norm == "batch_instance" else 2)
    assert len(others["params"]) + len(of_norms["params"]) == len(list(model.parameters()))


def test_norm_weight_decay_follows_weight_decay_if_not_given():
    model = models.build("cifar_resnet:8", 10, norm="group")
    groups = optimizer.build(Experiment(weight_decay=0.1), model).param_groups
    assert [g["weight_decay"] for g in groups] == [0.1, 0.1]


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_optimizer_state_survives_a_checkpoint(name):
    def stepped(steps: int, model, built):
        torch.manual_seed(0)
        for _ in range(steps):
            built.zero_grad()
            model(torch.randn(4, 3, 8, 8)).square().sum().backward()
            built.step()

    torch.manual_seed(1)
    experiment = Experiment(optimizer=name, learning_rate=1e-3)
    model = models.build("cifar_resnet:8", 10, norm="group")
    first = optimizer.build(experiment, model)
    stepped(3, model, first)
    kept = {k: v.clone() for k, v in optimizer.state_tensors(first).items()}
    second = optimizer.build(experiment, model)
    optimizer.load_state_tensors(second, kept)
    again = optimizer.state_tensors(second)
    assert kept.keys() == again.keys()
    assert all(torch.equal(kept[k], again[k]) for k in kept)


def test_parameters_may_get_their_first_gradient_late():
    """As where the first batches are of one of several domains; against SGD, step by step."""
    e = Experiment(momentum=0.9, weight_decay=0.0, learning_rate=0.1)
    layers = [torch.nn.Linear(1, 1, bias=False) for _ in range(2)]
    ours = optimizer.build(e, torch.nn.Sequential(*layers))
    gradients = [(1.0, None), (2.0, 3.0), (4.0, 5.0)]  # of both, by step
    expected = [layer.weight.item() for layer in layers]
    velocity = [0.0, 0.0]
    for step in gradients:
        for i, g in enumerate(step):
            layers[i].weight.grad = None if g is None else torch.full((1, 1), g)
            if g is not None:
                velocity[i] = 0.9 * velocity[i] + g
                expected[i] -= 0.1 * velocity[i]
        ours.step()
    assert [layer.weight.item() for layer in layers] == pytest.approx(expected, rel=1e-6)
