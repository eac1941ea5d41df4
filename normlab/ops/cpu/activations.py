"""Activations and their derivatives on vectors, right to a few units in the last place.

NaN passes through all of them. exp is 2^n times a Taylor polynomial on [-ln 2 / 2, ln 2 / 2], whose
first neglected term is below the precision of the type.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from numba.extending import overload

from normlab.ops.cpu.parallel import jit
from normlab.ops.cpu.simd import (
    erfc,
    fill,
    fma,
    magnitude,
    nearest,
    power_of_two,
    where_less,
    where_less_equal,
)

LN2_HIGH, LN2_LOW = 0.693145751953125, 1.42860682030941723212e-06  # the first has few digits
LIMIT = {"float32": 87.0, "float64": 708.0}  # of |v|, so that 2^n stays a normal number
TERMS = {"float32": 7, "float64": 13}


def _expm1_parts(v):
    """n and e^r - 1 of v = n ln 2 + r."""


@overload(_expm1_parts)
def _(v):
    coefficients = tuple(1 / math.factorial(k) for k in range(TERMS[v.element], 1, -1))
    limit = LIMIT[v.element]
    last = coefficients[0]
    rest = coefficients[1:]

    def parts(v):
        high, low = fill(v, limit), fill(v, -limit)
        v = where_less(high, v, high, where_less(v, low, low, v))
        n = nearest(v * fill(v, 1.4426950408889634))
        r = fma(n, fill(v, -LN2_LOW), fma(n, fill(v, -LN2_HIGH), v))
        p = fill(v, last)
        for c in rest:
            p = fma(p, r, fill(v, c))
        return n, fma(p * r, r, r)

    return parts


@jit
def exp(v):
    n, e = _expm1_parts(v)
    return (e + fill(v, 1.0)) * power_of_two(n)


@jit
def expm1(v):
    n, e = _expm1_parts(v)
    two = power_of_two(n)
    return fma(two, e, two - fill(v, 1.0))


@jit
def identity(z):
    return z


@jit
def pass_through(dy, z):
    return dy


@jit
def relu(z):
    zero = fill(z, 0.0)
    return where_less(z, zero, zero, z)


@jit
def relu_gradient(dy, z):
    zero = fill(z, 0.0)
    return where_less_equal(z, zero, zero, dy)


@jit
def leaky_relu(z):
    return where_less(z, fill(z, 0.0), z * fill(z, 0.01), z)


@jit
def leaky_relu_gradient(dy, z):
    return where_less_equal(z, fill(z, 0.0), dy * fill(z, 0.01), dy)


@jit
def sigmoid(z):
    return fill(z, 1.0) / (fill(z, 1.0) + exp(fill(z, 0.0) - z))


@jit
def sigmoid_gradient(dy, z):
    s = sigmoid(z)
    return dy * s * (fill(z, 1.0) - s)


@jit
def silu(z):
    return z / (fill(z, 1.0) + exp(fill(z, 0.0) - z))


@jit
def silu_gradient(dy, z):
    s = sigmoid(z)
    return dy * s * fma(z, fill(z, 1.0) - s, fill(z, 1.0))


@jit
def tanh(z):
    e = expm1(z + z)
    return e / (e + fill(z, 2.0))


@jit
def tanh_gradient(dy, z):
    t = tanh(z)
    return dy * fma(fill(z, 0.0) - t, t, fill(z, 1.0))


@jit
def hardswish(z):
    zero, one = fill(z, 0.0), fill(z, 1.0)
    ramp = fma(z, fill(z, 1 / 6), fill(z, 0.5))
    ramp = where_less(ramp, zero, zero, where_less(one, ramp, one, ramp))
    return z * ramp


@jit
def hardswish_gradient(dy, z):
    slope = fma(z, fill(z, 1 / 3), fill(z, 0.5))
    slope = where_less(z, fill(z, -3.0), fill(z, 0.0), slope)
    return dy * where_less(fill(z, 3.0), z, fill(z, 1.0), slope)


def normal_cdf(z):
    """The standard normal distribution function."""


@overload(normal_cdf)
def _(z):
    if z.element == "float64":

        def exact(z):
            return fill(z, 0.5) * erfc(z * fill(z, -math.sqrt(0.5)))

        return exact

    # Abramowitz and Stegun 7.1.26: erfc(x) = t·poly(t)·exp(-x²), t = 1/(1 + p·x), within 1.5e-7
    def within_rounding(z):
        x = magnitude(z) * fill(z, math.sqrt(0.5))
        t = fill(z, 1.0) / fma(x, fill(z, 0.3275911), fill(z, 1.0))
        p = fma(t, fill(z, 1.061405429), fill(z, -1.453152027))
        p = fma(p, t, fill(z, 1.421413741))
        p = fma(p, t, fill(z, -0.284496736))
        p = fma(p, t, fill(z, 0.254829592))
        tail = fill(z, 0.5) * p * t * exp(fill(z, 0.0) - x * x)
        return where_less(z, fill(z, 0.0), tail, fill(z, 1.0) - tail)

    return within_rounding


@jit
def gelu(z):
    return z * normal_cdf(z)


@jit
def gelu_gradient(dy, z):
    density = fill(z, 1 / math.sqrt(2 * math.pi)) * exp(z * z * fill(z, -0.5))
    return dy * fma(z, density, normal_cdf(z))


ROOT, CUBE = math.sqrt(2 / math.pi), 0.044715


@jit
def gelu_tanh(z):
    u = z * fma(z * z, fill(z, ROOT * CUBE), fill(z, ROOT))
    return z * sigmoid(u + u)


@jit
def gelu_tanh_gradient(dy, z):
    square = z * z
    u = z * fma(square, fill(z, ROOT * CUBE), fill(z, ROOT))
    s = sigmoid(u + u)
    slope = fma(square, fill(z, 6 * ROOT * CUBE), fill(z, 2 * ROOT))  # of 2u
    return dy * s * fma(z * slope, fill(z, 1.0) - s, fill(z, 1.0))


class Activation(NamedTuple):
    """A function, and its gradient from dy and the function's input z."""

    value: Callable
    gradient: Callable


ACTIVATIONS = {
    "none": Activation(identity, pass_through),
    "relu": Activation(relu, relu_gradient),
    "leaky_relu": Activation(leaky_relu, leaky_relu_gradient),
    "silu": Activation(silu, silu_gradient),
    "gelu": Activation(gelu, gelu_gradient),
    "gelu_tanh": Activation(gelu_tanh, gelu_tanh_gradient),
    "hardswish": Activation(hardswish, hardswish_gradient),
    "sigmoid": Activation(sigmoid, sigmoid_gradient),
    "tanh": Activation(tanh, tanh_gradient),
}
