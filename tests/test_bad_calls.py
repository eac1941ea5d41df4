"""Bad calls of functions: each is refused in words, and nothing is changed by it."""

import pytest
import torch
from oracle import sample
from test_bad_layers import X, group, rows

from normlab import functional, norms
from normlab.pattern import PatternError

# id, function call, exception, message
FUNCTION_CALLS = [
    (
        "12: weight of another size", lambda x: functional.group_norm(x, 2, torch.ones(5)),
        RuntimeError,
        "weight with one value for each of the 6 channels of input 4×6×3×5, got shape 5",
    ),
    (
        "12: weight of two axes",
        lambda x: functional.batch_norm(x, None, None, torch.ones(6, 1), None, True),
        RuntimeError, "each of the 6 channels .* got shape 6×1",
    ),
    (
        "12: bias of another size, by running statistics",
        lambda x: functional.batch_norm(x, torch.zeros(6), torch.ones(6), None, torch.ones(5)),
        RuntimeError, "bias with one value for each of the 6 channels .* got shape 5",
    ),
    (
        "12: bias of another size", lambda x: functional.layer_norm(x, (5,), None, torch.ones(3)),
        RuntimeError, "expected bias of shape 5, got 3",
    ),
    (
        "12: layer norm of no axes", lambda x: functional.layer_norm(x, ()),
        RuntimeError, r"ends in normalized_shape \(\)",
    ),
    (
        "13: bias elsewhere",
        lambda x: functional.instance_norm(x, bias=torch.ones(6, device="meta")),
        RuntimeError, "expected bias on the device of the input, cpu, got meta",
    ),
    (
        "15: no statistics", lambda x: functional.batch_norm(x, None, None),
        RuntimeError, "running_mean and running_var to be defined when training=False",
    ),
    (
        "15: half of the statistics", lambda x: functional.batch_norm(x, torch.zeros(6), None),
        RuntimeError, "or neither; running_var is None",
    ),
    (
        "15: statistics of another size",
        lambda x: functional.batch_norm(x, torch.zeros(5), torch.ones(5)),
        RuntimeError, "running_mean should contain 6 elements",
    ),
    (
        "5: eps 0 in training",
        lambda x: functional.batch_norm(x, None, None, training=True, eps=0.0),
        ValueError, "eps must be positive during training, got 0.0",
    ),
    (
        "residual of another shape", lambda x: group()(x, x[:2]),
        RuntimeError, "expected residual like x, 4×6×3×5 .*got 2×6×3×5",
    ),
    (
        "residual of another type", lambda x: norms.norm("bin", 6)(x, x.double()),
        RuntimeError, "residual like x.*float32.*float64",
    ),
    (
        "residual of another shape, no norm", lambda x: norms.norm("none", 6)(x, x[:1]),
        RuntimeError, "residual like x",
    ),
    (
        "pattern of other axes", lambda x: functional.normalize(x, "n c -> n"),
        PatternError, "is for 2 axes, got shape 4×6×3×5 with 4",
    ),
    (
        "pattern without a size", lambda x: functional.normalize(x, "n (g c) ... -> n g"),
        PatternError, "give g=…",
    ),
    (
        "unknown activation", lambda x: functional.normalize(x, "n c ... -> n", activation="swish"),
        ValueError, "'swish' is none of none, relu",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "exception", "message"), rows(FUNCTION_CALLS))
def test_wrong_call_is_refused_and_leaves_no_trace(call, exception, message):
    x = sample(*X)
    with pytest.raises(exception, match=message):
        call(x)
    assert torch.equal(x, sample(*X))
