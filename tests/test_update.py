"""One step of training: what recipes ask for, against the definition of each."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from normlab.lab import evaluate, mixing, models, train
from normlab.lab.compute import Compute
from normlab.lab.data.batches import Batch
from normlab.lab.experiment import Experiment
from normlab.lab.processes import Group
from normlab.lab.runs import Run
from normlab.lab.tasks.classification import Input
from normlab.lab.update import Update

ALONE = Group(0, 1, torch.device("cpu"))
ON_CPU = Compute(device="cpu")
TINY = Experiment(
    data="digits", num_train=64, num_validation=32, batch_size=16, epochs=2, norm="batch"
)
INPUT = Input((128.0,) * 3, (60.0,) * 3, (3, 8, 8), tuple("0123456789"))


def batch(size: int = 16, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (size, 3, 8, 8), dtype=torch.uint8, generator=random)
    labels = torch.randint(0, 10, (size,), generator=random)
    return Batch(images, labels, torch.arange(size), None)


def update(e: Experiment, compute: Compute = ON_CPU) -> Update:
    torch.manual_seed(0)
    return Update(e, models.build(e.model, 10, norm=e.norm).train(), ALONE, compute)


def step(update: Update, number: int = 0, mix=None) -> None:
    update.prepare(number, 100)
    update.gradients(batch(seed=number), INPUT, mix=mix, probed=False)
    assert update.apply(number)


def gradients(update: Update) -> list[torch.Tensor]:
    return [p.grad.clone() for p in update.model.parameters()]


def test_smoothed_and_mixed_loss_is_the_mean_over_both_labels():
    e = TINY.replace(norm="group", label_smoothing=0.1, mixup=1.0)
    ours, given = update(e), batch()
    ours.gradients(given, INPUT, mix=mixing.Mixing(0.7), probed=False)
    found = gradients(ours)
    x = INPUT.prepare(given.images, ALONE.device)
    other = torch.arange(16) ^ 1
    ours.optimizer.zero_grad()
    logits = ours.model(0.7 * x + 0.3 * x[other])
    smooth = 0.9 * F.one_hot(given.labels, 10) + 0.01
    target = 0.7 * smooth + 0.3 * smooth[other]
    (-(target * logits.log_softmax(1)).sum(1).mean()).backward()
    for one, expected in zip(found, gradients(ours)):
        torch.testing.assert_close(one, expected, atol=1e-5, rtol=1e-4)


def test_gradients_are_scaled_down_to_the_greatest_norm():
    plain, clipped = update(TINY), update(TINY.replace(max_gradient_norm=0.01))
    for each in (plain, clipped):
        step(each)
    whole = torch.nn.utils.get_total_norm(gradients(plain))
    assert torch.nn.utils.get_total_norm(gradients(clipped)).item() == pytest.approx(0.01, rel=1e-3)
    for one, other in zip(gradients(clipped), gradients(plain)):
        torch.testing.assert_close(one, other * (0.01 / whole), atol=1e-8, rtol=1e-3)


def test_average_of_weights_follows_its_equation():
    ours = update(TINY.replace(ema=0.5))
    name, expected = "0.weight", ours.model.get_parameter("0.weight").detach().clone()
    for number in range(4):
        step(ours, number)
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * ours.model.get_parameter(name).detach()
    torch.testing.assert_close(ours.judged.get_parameter(name), expected)
    assert not torch.equal(ours.judged.get_parameter(name), ours.model.get_parameter(name))
    tracked = dict(ours.judged.named_buffers())
    assert all(b == 4 for n, b in tracked.items() if "num_batches" in n)  # counts are not averaged


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_narrow_types_are_used_and_lead_to_about_the_same_gradients(precision):
    ours, wide = update(TINY.replace(precision=precision)), update(TINY)
    types = set()
    convolution = next(m for m in ours.model.modules() if isinstance(m, nn.Conv2d))
    convolution.register_forward_hook(lambda module, args, output: types.add(output.dtype))
    for each in (ours, wide):
        each.gradients(batch(), INPUT, mix=None, probed=False)
    assert types == {getattr(torch, precision)}
    assert all(p.dtype == torch.float32 for p in ours.model.parameters())
    found = torch.cat([g.flatten() for g in gradients(ours)]) / ours.scaler.get_scale()
    expected = torch.cat([g.flatten() for g in gradients(wide)])
    assert F.cosine_similarity(found, expected, dim=0) > 0.99


def test_step_with_too_large_a_scale_is_left_out_and_the_scale_falls():
    ours = update(TINY.replace(precision="float16"))
    before = [p.detach().clone() for p in ours.model.parameters()]
    scale = ours.scaler.get_scale()
    ours.prepare(0, 100)
    ours.gradients(batch(), INPUT, mix=None, probed=False)
    next(ours.model.parameters()).grad[0] = torch.inf
    assert ours.apply(0)
    assert ours.scaler.get_scale() == scale / 2
    assert all(torch.equal(a, b) for a, b in zip(before, ours.model.parameters()))


def test_no_scale_helps_a_gradient_that_is_not_finite():
    ours = update(TINY)
    ours.gradients(batch(), INPUT, mix=None, probed=False)
    next(ours.model.parameters()).grad[0] = torch.nan
    assert not ours.apply(0)


def test_statistics_stay_as_they_are_after_the_fraction_given():
    ours = update(TINY.replace(freeze_statistics=0.02))
    norm = next(m for m in ours.model.modules() if getattr(m, "running_mean", None) is not None)
    seen = []
    for number in range(4):
        ours.model.train()
        step(ours, number)
        seen.append(norm.running_mean.clone())
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2])
    assert torch.equal(seen[2], seen[3])


def test_channels_last_reaches_every_convolution():
    ours = update(TINY, Compute(device="cpu", channels_last=True))
    formats = []
    for module in ours.model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda m, args, output: formats.append(
                    output.is_contiguous(memory_format=torch.channels_last)
                )
            )
    ours.gradients(batch(), INPUT, mix=None, probed=False)
    assert formats
    assert all(formats)


def test_dropout_is_a_function_of_seed_and_step():
    ours = update(TINY)
    drawn = []
    for number in (0, 1, 0):
        ours.prepare(number, 100)
        drawn.append(torch.rand(8))
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


RECIPES = {
    "averaged weights": {"ema": 0.9},
    "scaled gradients": {"precision": "float16"},
    "mixed": {"mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1},
    "frozen": {"freeze_statistics": 0.5, "max_gradient_norm": 1.0},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_interrupted_ends_with_the_same_bits(tmp_path, recipe):
    from test_train import assert_same, signal_at

    e = TINY.replace(**RECIPES[recipe])
    whole = Run.create(tmp_path / "whole", e)
    assert train.train(whole, compute=ON_CPU) == "finished"
    run = Run.create(tmp_path / "cut", e)
    assert train.train(run, compute=ON_CPU, report=signal_at(3)) == "interrupted"
    assert train.train(run, compute=ON_CPU) == "finished"
    assert_same(run, whole)


def test_averaged_weights_are_judged_and_kept(tmp_path):
    run = Run.create(tmp_path, TINY.replace(ema=0.9))
    train.train(run, compute=ON_CPU)
    said = [e["validation_error"] for e in run.events() if e["event"] == "epoch"]
    for which, error in (("last", said[-1]), ("best", min(said))):
        scores, _ = evaluate.evaluate(run, ["validation"], which, ALONE.device)
        assert scores["validation"]["error"] == pytest.approx(error)
