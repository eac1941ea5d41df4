"""Activations and their slopes, as kernels compute them: in float32, on a tile of z.

They use what both the compiler and the interpreter have: exp and erf. NaN stays NaN.
"""

import triton
from triton import language as tl


@triton.jit
def sigmoid(z):
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def tanh(z):
    # near 0, where 1 - exp cancels, four terms of the series: below 0.25 exact to 3e-7 of tanh
    square = z * z
    near = z * (1.0 - square * (1 / 3 - square * (2 / 15 - square * (17 / 315))))
    e = tl.exp(-2.0 * tl.abs(z))
    far = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(z) < 0.25, near, tl.where(z < 0, -far, far))


@triton.jit
def normal_below(z):
    """Probability that a standard normal value is below z."""
    return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))


@triton.jit
def nearly_normal_below(z):
    """The same by its approximation (1 + tanh(√(2/π) · (z + 0.044715 z³))) / 2."""
    return sigmoid(1.5957691216057308 * (z + 0.044715 * z * z * z))


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """The activation of that name."""
    if ACTIVATION == "relu":
        z = tl.where(z <= 0, 0.0, z)
    elif ACTIVATION == "leaky_relu":
        z = tl.where(z > 0, z, 0.01 * z)
    elif ACTIVATION == "silu":
        z = z * sigmoid(z)
    elif ACTIVATION == "gelu":
        z = z * normal_below(z)
    elif ACTIVATION == "gelu_tanh":
        z = z * nearly_normal_below(z)
    elif ACTIVATION == "hardswish":
        z = z * tl.minimum(tl.maximum(z + 3.0, 0.0), 6.0) / 6.0
    elif ACTIVATION == "sigmoid":
        z = sigmoid(z)
    elif ACTIVATION == "tanh":
        z = tanh(z)
    return z


@triton.jit
def slope(z, ACTIVATION: tl.constexpr):
    """Derivative of `activate`; at a kink, that of torch."""
    if ACTIVATION == "relu":
        d = tl.where(z <= 0, 0.0, 1.0)
    elif ACTIVATION == "leaky_relu":
        d = tl.where(z > 0, 1.0, 0.01)
    elif ACTIVATION == "silu":
        s = sigmoid(z)
        d = s * (1.0 + z * (1.0 - s))
    elif ACTIVATION == "gelu":
        d = normal_below(z) + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)
    elif ACTIVATION == "gelu_tanh":
        s = nearly_normal_below(z)
        d = s + z * s * (1.0 - s) * 1.5957691216057308 * (1.0 + 0.134145 * z * z)
    elif ACTIVATION == "hardswish":
        d = tl.where(z < -3.0, 0.0, tl.where(z <= 3.0, z / 3.0 + 0.5, 1.0))
    elif ACTIVATION == "sigmoid":
        s = sigmoid(z)
        d = s * (1.0 - s)
    else:
        t = tanh(z)
        d = 1.0 - t * t
    return d
