"""Norms against the same norms of Keras and Flax, in their own packages, conventions translated.

Keras counts momentum the other way round (its 0.99 is our 0.01), adds eps of 1e-3, and moves the
biased variance; Flax does the first and the last. Both have channels last.
"""

import numpy as np
import pytest
import torch
from oracle import sample

import normlab
from normlab import functional

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
X = sample(4, 6, 5, 3) * 2 + 1
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}  # two computations in float32, each some eps · 10 off


@pytest.fixture(scope="module")
def keras():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        yield pytest.importorskip("keras")


@pytest.fixture(scope="module")
def linen():
    return pytest.importorskip("flax.linen")


def last(x):
    return x.movedim(1, -1)


def by_keras(layer, **how):
    """Channels first again; weight and bias as they are at the start."""
    y = layer(last(X).clone(), **how)
    return y.detach().cpu().movedim(-1, 1)


def by_flax(layer, **how):
    import jax

    x = last(X).numpy()
    state = layer.init(jax.random.key(0), x)
    y = layer.apply(state, x, **how)
    y, changed = y if isinstance(y, tuple) else (y, None)
    return torch.from_numpy(np.array(y)).movedim(-1, 1), changed


KERAS = {
    "group:3": lambda k: k.layers.GroupNormalization(groups=3, epsilon=1e-5),
    "layer": lambda k: k.layers.GroupNormalization(groups=1, epsilon=1e-5),
    "instance": lambda k: k.layers.GroupNormalization(groups=-1, epsilon=1e-5),
    "position": lambda k: k.layers.LayerNormalization(epsilon=1e-5),
    "rms": lambda k: k.layers.RMSNormalization(epsilon=1e-5),
}
FLAX = {
    "group:3": lambda n: n.GroupNorm(num_groups=3, epsilon=1e-5),
    "layer": lambda n: n.GroupNorm(num_groups=1, epsilon=1e-5),
    "instance": lambda n: n.InstanceNorm(epsilon=1e-5),
    "position": lambda n: n.LayerNorm(epsilon=1e-5),
    "rms": lambda n: n.RMSNorm(epsilon=1e-5),
}


@pytest.mark.parametrize("spec", KERAS)
def test_norms_of_single_samples_equal_keras(spec, keras):
    torch.testing.assert_close(normlab.norm(spec, 6)(X).detach(), by_keras(KERAS[spec](keras)))


@pytest.mark.parametrize("spec", FLAX)
def test_norms_of_single_samples_equal_flax(spec, linen):
    y, _ = by_flax(FLAX[spec](linen))
    torch.testing.assert_close(normlab.norm(spec, 6)(X).detach(), y, **TOLERANCE)


def test_batch_norm_equals_keras_but_for_the_biased_variance(keras):
    theirs = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
    ours = normlab.norm("batch", 6, momentum=0.1)
    y = by_keras(theirs, training=True)
    torch.testing.assert_close(ours(X).detach(), y, **TOLERANCE)
    torch.testing.assert_close(ours.running_mean, theirs.moving_mean.value.detach().cpu())
    count = X.numel() // 6
    biased = 0.9 + (ours.running_var - 0.9) * (count - 1) / count
    torch.testing.assert_close(biased, theirs.moving_variance.value.detach().cpu())


def test_batch_norm_equals_flax_but_for_the_biased_variance(linen):
    theirs = linen.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5)
    y, changed = by_flax(theirs, mutable=["batch_stats"])
    ours = normlab.norm("batch", 6, momentum=0.1)
    torch.testing.assert_close(ours(X).detach(), y, **TOLERANCE)
    mean, var = (torch.from_numpy(np.array(changed["batch_stats"][k])) for k in ("mean", "var"))
    torch.testing.assert_close(ours.running_mean, mean, **TOLERANCE)
    count = X.numel() // 6
    biased = 0.9 + (ours.running_var - 0.9) * (count - 1) / count
    torch.testing.assert_close(biased, var, **TOLERANCE)


def test_mask_equals_that_of_flax(linen):
    mask = torch.rand(4, 5, 3, generator=torch.Generator().manual_seed(0)) > 0.3
    theirs = linen.BatchNorm(use_running_average=False, epsilon=1e-5)
    y, _ = by_flax(theirs, mutable=["batch_stats"], mask=mask.unsqueeze(-1).numpy())
    ours = functional.normalize(X, "n c ... -> c", mask=mask)
    valid = mask.unsqueeze(1).expand(X.shape)
    torch.testing.assert_close(ours[valid], y[valid], **TOLERANCE)


def test_spectral_norm_equals_keras_after_many_steps(keras):
    layer = torch.nn.Conv2d(3, 8, 3)
    normlab.surgery.reparametrize(layer, "sn")
    theirs = keras.layers.SpectralNormalization(keras.layers.Dense(8), power_iterations=200)
    x = torch.randn(2, 27)
    theirs.build(tuple(x.shape))
    weight = layer.parametrizations.weight.original.detach().flatten(1)
    theirs.layer.kernel.assign(weight.T)
    theirs(x, training=True)
    for _ in range(200):
        layer.train()(torch.randn(1, 3, 5, 5))
    theirs_now = theirs.layer.kernel.value.detach().cpu().T
    torch.testing.assert_close(layer.weight.detach().flatten(1), theirs_now, rtol=1e-4, atol=1e-5)
