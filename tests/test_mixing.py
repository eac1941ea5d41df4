"""Mixed images: shares, boxes, labels; drawn anew for every batch, and always the same."""

import pytest
import torch

from normlab.lab import mixing
from normlab.lab.experiment import Experiment
from normlab.lab.mixing import Mixing

E = Experiment()


def test_nothing_is_mixed_unless_asked():
    assert mixing.draw(E, 0, 0) is None


@pytest.mark.parametrize("mixup", [0.2, 1.0], ids=["unlike cutmix", "as much as cutmix"])
def test_batch_is_mixed_alike_whenever_it_is_asked_for(mixup):
    e = E.replace(mixup=mixup, cutmix=1.0)
    drawn = [mixing.draw(e, epoch, number) for epoch in range(2) for number in range(50)]
    assert drawn == [mixing.draw(e, epoch, number) for epoch in range(2) for number in range(50)]
    assert len(set(drawn)) == 100
    assert {m.box is None for m in drawn} == {True, False}  # one of both a batch


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_are_beta_distributed(alpha):
    e = E.replace(mixup=alpha)
    shares = torch.tensor([mixing.draw(e, 0, number).share for number in range(2000)])
    spread = 1 / (4 * (2 * alpha + 1))  # variance of Beta(alpha, alpha)
    assert shares.mean() == pytest.approx(0.5, abs=5 * (spread / 2000) ** 0.5)
    assert shares.var() == pytest.approx(spread, rel=0.1)


def test_averaged_images_are_between_neighbours():
    x = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, 4, 4)
    mixed, share = mixing.mixed(x, Mixing(0.75))
    assert share == 0.75
    torch.testing.assert_close(mixed[:, 0, 0, 0], torch.tensor([0.25, 0.75, 2.0]))


def test_pasted_box_has_the_area_that_the_label_says():
    x = torch.zeros(4, 1, 8, 10)
    x[1::2] = 1
    pasted, share = mixing.mixed(x, Mixing(0.5, (0.0, 0.5, 0.3, 0.8)))
    assert share == 1 - 4 * 5 / 80
    assert pasted[0].mean() == pytest.approx(1 - share)
    assert pasted[0, 0, :4, 3:8].eq(1).all()
    assert x[0].eq(0).all()  # the images themselves are left as they are


def test_box_beyond_the_edge_is_cut_and_counted_as_it_is():
    e = E.replace(cutmix=1.0)
    x = torch.zeros(2, 1, 32, 32)
    x[1] = 1
    for number in range(50):
        pasted, share = mixing.mixed(x, mixing.draw(e, 0, number))
        assert pasted[0].mean().item() == pytest.approx(1 - share)
