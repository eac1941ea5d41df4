"""Vectors of 64 bytes for Numba.

Numba compiles loops over numbers; whether they become vector instructions is then LLVM's guess.
Here a vector is a type of its own: 16 float32 or 8 float64, which LLVM cuts to what the machine
has: one register of AVX-512, two of AVX2, four of NEON or SSE. `pointers` brings them from memory.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel.models import PrimitiveModel
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, register_model

LANES = {"float32": 16, "float64": 8}

I32, I64 = ir.IntType(32), ir.IntType(64)
REAL = {"float32": ir.FloatType(), "float64": ir.DoubleType()}


class Vector(types.Type):
    """64 bytes of float32 or float64."""

    def __init__(self, element: str) -> None:
        self.element = element
        super().__init__(f"Vector({element})")


@register_model(Vector)
class _VectorModel(PrimitiveModel):
    def __init__(self, manager: Any, type_: Vector) -> None:
        super().__init__(manager, type_, llvm_of(type_.element))


def llvm_of(element: str) -> ir.VectorType:
    return ir.VectorType(REAL[element], LANES[element])


@intrinsic
def fill(_, like, value):
    """A vector, as loaded through the pointer (or like the vector), of one float64."""
    vector = getattr(like, "vector", like)

    def generate(c, b, s, arguments):
        return _spread(b, vector.element, arguments[1])

    return vector(like, types.float64), generate


@intrinsic
def rounded(_, pointer, value):
    """A float64 rounded to what vectors loaded through the pointer are computed in."""

    def generate(c, b, s, arguments):
        real = REAL[pointer.vector.element]
        if pointer.vector.element == "float64":
            return arguments[1]
        return b.fpext(b.fptrunc(arguments[1], real), REAL["float64"])

    return types.float64(pointer, types.float64), generate


@intrinsic
def total(_, v):
    """The sum of the lanes, as float64."""

    def generate(c, b, s, arguments):
        real = REAL[v.element]
        type_ = llvm_of(v.element)
        add = declared(b, f"llvm.vector.reduce.fadd.{suffix(type_)}", real, [real, type_])
        result = b.call(add, [ir.Constant(real, 0.0), arguments[0]], fastmath=("reassoc",))
        return result if v.element == "float64" else b.fpext(result, REAL["float64"])

    return types.float64(v), generate


@intrinsic
def keep(_, v, n):
    """The first n lanes, the others 0."""

    def generate(c, b, s, arguments):
        zeros = ir.Constant(llvm_of(v.element), None)
        return b.select(first_lanes(b, arguments[1], LANES[v.element]), arguments[0], zeros)

    return v(v, types.int64), generate


@intrinsic
def fma(_, a, b_, c_):
    """a * b + c, rounded once where the machine can."""

    def generate(c, b, s, arguments):
        type_ = llvm_of(a.element)
        function = declared(b, f"llvm.fmuladd.{suffix(type_)}", type_, [type_] * 3)
        return b.call(function, arguments)

    return a(a, a, a), generate


def _choose(predicate: str) -> Callable:
    @intrinsic
    def choose(_, left, right, yes, no):
        def generate(c, b, s, arguments):
            a, b_, x, y = arguments
            return b.select(b.fcmp_ordered(predicate, a, b_), x, y)

        return left(left, left, left, left), generate

    return choose


where_less = _choose(
    "<"
)  # (a, b, yes, no): lanes of yes where a < b; of no elsewhere, NaN included
where_less_equal = _choose("<=")


def _unary(name: str) -> Callable:
    @intrinsic
    def function(_, v):
        def generate(c, b, s, arguments):
            type_ = llvm_of(v.element)
            return b.call(declared(b, f"llvm.{name}.{suffix(type_)}", type_, [type_]), arguments)

        return v(v), generate

    return function


nearest = _unary("rint")
magnitude = _unary("fabs")


@intrinsic
def power_of_two(_, v):
    """2**v for whole v within the exponents of the type; anything for others."""
    integer, digits, bias = (I32, 23, 127) if v.element == "float32" else (I64, 52, 1023)

    def generate(c, b, s, arguments):
        type_ = ir.VectorType(integer, LANES[v.element])
        shifted = b.fadd(arguments[0], _constant(b, v.element, 1.5 * 2**digits + bias))
        bits = b.shl(b.bitcast(shifted, type_), ir.Constant(type_, [digits] * LANES[v.element]))
        return b.bitcast(bits, llvm_of(v.element))

    return v(v), generate


def _lane_by_lane(name: str) -> Callable:
    """A float64 function of libm."""

    @intrinsic
    def function(_, v):
        def generate(c, b, s, arguments):
            real = REAL["float64"]
            called = declared(b, name, real, [real])
            result = arguments[0]
            for lane in range(LANES["float64"]):
                value = b.call(called, [b.extract_element(result, I32(lane))])
                result = b.insert_element(result, value, I32(lane))
            return result

        return v(v), generate

    return function


erfc = _lane_by_lane("erfc")  # of float64


def _register_operator(function: Callable, instruction: str) -> None:
    @infer_global(function)
    class _(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
                return signature(args[0], *args)

    @lower_builtin(function, Vector, Vector)
    def _(context, builder, sig, args):
        return getattr(builder, instruction)(*args)


for _operator, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _register_operator(_operator, _instruction)


def suffix(type_: ir.VectorType) -> str:
    """How LLVM names a vector type in the names of its functions."""
    names = {"float": "f32", "double": "f64", "half": "f16", "i16": "i16"}
    return f"v{type_.count}{names[str(type_.element)]}"


def declared(b: Any, name: str, result: Any, arguments: list) -> Any:
    return cgutils.get_or_insert_function(b.module, ir.FunctionType(result, arguments), name)


def _constant(b: Any, element: str, value: float) -> Any:
    return ir.Constant(llvm_of(element), [value] * LANES[element])


def _spread(b: Any, element: str, value: Any) -> Any:
    """A float64 in every lane."""
    value = value if element == "float64" else b.fptrunc(value, REAL[element])
    type_ = llvm_of(element)
    one = b.insert_element(ir.Constant(type_, ir.Undefined), value, I32(0))
    zeros = ir.Constant(ir.VectorType(I32, LANES[element]), None)
    return b.shuffle_vector(one, ir.Constant(type_, ir.Undefined), zeros)


def first_lanes(b: Any, n: Any, lanes: int) -> Any:
    """The mask of the first n lanes."""
    type_ = ir.VectorType(I32, lanes)
    one = b.insert_element(ir.Constant(type_, ir.Undefined), b.trunc(n, I32), I32(0))
    limit = b.shuffle_vector(one, ir.Constant(type_, ir.Undefined), ir.Constant(type_, None))
    return b.icmp_signed("<", ir.Constant(type_, list(range(lanes))), limit)
