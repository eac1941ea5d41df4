"""Pointers for Numba, through which vectors and numbers are read and written.

What is stored as bfloat16 or float16 is float32 in a vector.

    pointer = at("bfloat16")(address)   an address as a pointer to elements
    v = load(pointer, i)                elements i … of it; load_part takes the first n, the rest 0
    store(pointer, i, v)                store_part writes the first n; stream passes the caches by
    get, put                            one number, as float64 (int64 for "int64")

Offsets are in elements and 64 bits wide. Nothing is checked: callers know their sizes.
"""

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.datamodel.models import PrimitiveModel
from numba.extending import intrinsic, register_model

from normlab.ops.cpu.simd import (
    I32,
    I64,
    LANES,
    REAL,
    Vector,
    declared,
    first_lanes,
    llvm_of,
    suffix,
)

ITEMSIZE = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2, "int64": 8}
COMPUTE = {"float32": "float32", "float64": "float64", "bfloat16": "float32", "float16": "float32"}

_I16 = ir.IntType(16)
_MEMORY = {**REAL, "bfloat16": _I16, "float16": ir.HalfType(), "int64": I64}


class Pointer(types.Type):
    """The address of elements of one type."""

    def __init__(self, element: str) -> None:
        self.element = element
        super().__init__(f"Pointer({element})")

    @property
    def vector(self) -> Vector:
        """What is loaded through it."""
        return Vector(COMPUTE[self.element])

    @property
    def number(self) -> types.Type:
        """What one element is read as."""
        return types.int64 if self.element == "int64" else types.float64


@register_model(Pointer)
class _PointerModel(PrimitiveModel):
    def __init__(self, manager: Any, type_: Pointer) -> None:
        super().__init__(manager, type_, I64)


@functools.cache
def at(element: str) -> Callable:
    """The function that takes an address as a pointer to elements."""

    @intrinsic
    def pointer(_, address):
        return Pointer(element)(types.int64), lambda c, b, s, arguments: arguments[0]

    return pointer


@intrinsic
def load(_, pointer, i):
    def generate(c, b, s, arguments):
        kind = pointer.element
        where = _address(b, kind, *arguments, lanes=LANES[COMPUTE[kind]])
        return _widened(b, kind, b.load(where, align=ITEMSIZE[kind]))

    return pointer.vector(pointer, types.int64), generate


@intrinsic
def load_part(_, pointer, i, n):
    def generate(c, b, s, arguments):
        kind = pointer.element
        lanes = LANES[COMPUTE[kind]]
        memory = ir.VectorType(_MEMORY[kind], lanes)
        where = _address(b, kind, *arguments[:2], lanes=lanes)
        function = declared(
            b, f"llvm.masked.load.{suffix(memory)}.p0",
            memory, [where.type, I32, ir.VectorType(ir.IntType(1), lanes), memory],
        )  # fmt: skip
        zeros = ir.Constant(memory, None)
        values = b.call(
            function, [where, I32(ITEMSIZE[kind]), first_lanes(b, arguments[2], lanes), zeros]
        )
        return _widened(b, kind, values)

    return pointer.vector(pointer, types.int64, types.int64), generate


@intrinsic
def load_wide(_, pointer, i):
    """Eight elements as float64."""

    def generate(c, b, s, arguments):
        where = _address(b, pointer.element, *arguments, lanes=8)
        values = b.load(where, align=ITEMSIZE[pointer.element])
        return values if pointer.element == "float64" else b.fpext(values, llvm_of("float64"))

    return Vector("float64")(pointer, types.int64), generate


@intrinsic
def store(_, pointer, i, v):
    def generate(c, b, s, arguments):
        kind = pointer.element
        where = _address(b, kind, *arguments[:2], lanes=LANES[v.element])
        b.store(_narrowed(b, kind, arguments[2]), where, align=ITEMSIZE[kind])
        return c.get_dummy_value()

    return types.void(pointer, types.int64, v), generate


@intrinsic
def stream(_, pointer, i, v):
    """A store that goes around the caches; the address must be a multiple of the bytes stored."""

    def generate(c, b, s, arguments):
        kind = pointer.element
        lanes = LANES[v.element]
        where = _address(b, kind, *arguments[:2], lanes=lanes)
        stored = b.store(_narrowed(b, kind, arguments[2]), where, align=lanes * ITEMSIZE[kind])
        stored.set_metadata("nontemporal", b.module.add_metadata([I32(1)]))
        return c.get_dummy_value()

    return types.void(pointer, types.int64, v), generate


@intrinsic
def prefetch(_, pointer, i):
    """Ask for the line of element i; it may lie outside of the tensor."""

    def generate(c, b, s, arguments):
        where = _address(b, pointer.element, *arguments, lanes=LANES[COMPUTE[pointer.element]])
        function = declared(b, "llvm.prefetch.p0", ir.VoidType(), [where.type, I32, I32, I32])
        b.call(function, [where, I32(0), I32(2), I32(1)])  # to read, second-level cache, data
        return c.get_dummy_value()

    return types.void(pointer, types.int64), generate


@intrinsic
def store_part(_, pointer, i, v, n):
    def generate(c, b, s, arguments):
        kind = pointer.element
        lanes = LANES[v.element]
        where = _address(b, kind, *arguments[:2], lanes=lanes)
        values = _narrowed(b, kind, arguments[2])
        function = declared(
            b, f"llvm.masked.store.{suffix(values.type)}.p0", ir.VoidType(),
            [values.type, where.type, I32, ir.VectorType(ir.IntType(1), lanes)],
        )  # fmt: skip
        b.call(function, [values, where, I32(ITEMSIZE[kind]), first_lanes(b, arguments[3], lanes)])
        return c.get_dummy_value()

    return types.void(pointer, types.int64, v, types.int64), generate


@intrinsic
def get(_, pointer, i):
    def generate(c, b, s, arguments):
        kind = pointer.element
        value = b.load(_address(b, kind, *arguments, lanes=1), align=ITEMSIZE[kind])
        if kind in ("int64", "float64"):
            return value
        if kind == "bfloat16":
            value = b.bitcast(b.shl(b.zext(value, I32), I32(16)), REAL["float32"])
        return b.fpext(value, REAL["float64"])

    return pointer.number(pointer, types.int64), generate


@intrinsic
def put(_, pointer, i, value):
    """Write one number through a pointer to float32, float64 or int64."""

    def generate(c, b, s, arguments):
        kind = pointer.element
        value = arguments[2]
        if kind == "float32":
            value = b.fptrunc(value, REAL[kind])
        b.store(value, _address(b, kind, *arguments[:2], lanes=1), align=ITEMSIZE[kind])
        return c.get_dummy_value()

    return types.void(pointer, types.int64, pointer.number), generate


@intrinsic
def address_of(_, pointer, i):
    """The address of element i."""

    def generate(c, b, s, arguments):
        return b.add(arguments[0], b.mul(arguments[1], I64(ITEMSIZE[pointer.element])))

    return types.int64(pointer, types.int64), generate


@intrinsic
def lanes_of(_, pointer):
    """Elements in a vector loaded through a pointer."""

    def generate(c, b, s, arguments):
        return I64(LANES[COMPUTE[pointer.element]])

    return types.int64(pointer), generate


@intrinsic
def call(_, address):
    """The 32-bit result of the C function without arguments at an address."""

    def generate(c, b, s, arguments):
        kind = ir.FunctionType(I32, []).as_pointer()
        return b.sext(b.call(b.inttoptr(arguments[0], kind), []), I64)

    return types.int64(types.int64), generate


def _address(b: Any, kind: str, pointer: Any, i: Any, *, lanes: int) -> Any:
    memory = _MEMORY[kind] if lanes == 1 else ir.VectorType(_MEMORY[kind], lanes)
    return b.inttoptr(b.add(pointer, b.mul(i, I64(ITEMSIZE[kind]))), memory.as_pointer())


def _widened(b: Any, kind: str, values: Any) -> Any:
    """What was in memory, as it is computed with."""
    if kind == "float16":
        return b.fpext(values, llvm_of("float32"))
    if kind == "bfloat16":
        wide = ir.VectorType(I32, 16)
        bits = b.shl(b.zext(values, wide), ir.Constant(wide, [16] * 16))
        return b.bitcast(bits, llvm_of("float32"))
    return values


def _narrowed(b: Any, kind: str, values: Any) -> Any:
    """What was computed, as it is in memory: rounded to the nearest, to even between two."""
    if kind == "float16":
        return b.fptrunc(values, ir.VectorType(ir.HalfType(), 16))
    if kind != "bfloat16":
        return values
    wide = ir.VectorType(I32, 16)
    constant = functools.partial(ir.Constant, wide)
    bits = b.bitcast(values, wide)
    odd = b.and_(b.lshr(bits, constant([16] * 16)), constant([1] * 16))
    up = b.lshr(b.add(bits, b.add(odd, constant([0x7FFF] * 16))), constant([16] * 16))
    nan = b.fcmp_unordered("uno", values, values)
    return b.trunc(b.select(nan, constant([0x7FC0] * 16), up), ir.VectorType(_I16, 16))
