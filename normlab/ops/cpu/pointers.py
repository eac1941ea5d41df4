"""Pointers for Numba, through which vectors and numbers are read and written.

What is stored as bfloat16 or float16 is float32 in a vector.

    pointer = at("bfloat16")(address)   an address as a pointer to elements
    v = load(pointer, i)                elements i … of it; load_part takes the first n, the rest 0
    store(pointer, i, v)                store_part writes the first n; stream passes the caches by
    load_first, load_second, store_two  a pair of vectors, see `pairs`; stream_two as stream
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
LINE = 64  # bytes of a line of the cache
_WIDE = ir.VectorType(I32, 16)


def _each(value: int) -> ir.Constant:
    return ir.Constant(_WIDE, [value] * 16)


_HALF, _UPPER = _each(16), _each(0xFFFF0000)  # bits of a bfloat16, and the second of two
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


def _half(second: bool) -> Callable:
    @intrinsic
    def function(_, pointer, i):
        def generate(c, b, s, arguments):
            kind, i = pointer.element, arguments[1]
            lanes = LANES[COMPUTE[kind]]
            if kind != "bfloat16":
                start = b.add(i, I64(lanes)) if second else i
                where = _address(b, kind, arguments[0], start, lanes=lanes)
                return _widened(b, kind, b.load(where, align=ITEMSIZE[kind]))
            both = b.load(_address_of_pairs(b, *arguments), align=2)
            bits = b.and_(both, _UPPER) if second else b.shl(both, _HALF)
            return b.bitcast(bits, llvm_of("float32"))

        return pointer.vector(pointer, types.int64), generate

    return function


load_first, load_second = _half(False), _half(True)  # of two vectors' elements, see `pairs`


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


def _both(streaming: bool) -> Callable:
    @intrinsic
    def function(_, pointer, i, first, second):
        def generate(c, b, s, arguments):
            kind, (start, i, *halves) = pointer.element, arguments
            lanes = LANES[first.element]
            if kind == "bfloat16":
                even, odd = (_rounded_bits(b, half) for half in halves)
                whole = b.or_(b.lshr(even, _HALF), b.and_(odd, _UPPER))
                stores = [(whole, _address_of_pairs(b, start, i))]
            else:
                stores = [
                    (_narrowed(b, kind, half),
                     _address(b, kind, start, b.add(i, I64(k * lanes)), lanes=lanes))
                    for k, half in enumerate(halves)
                ]  # fmt: skip
            for values, where in stores:
                size = lanes * ITEMSIZE[kind] * len(halves) // len(stores)
                stored = b.store(values, where, align=size if streaming else ITEMSIZE[kind])
                if streaming:
                    stored.set_metadata("nontemporal", b.module.add_metadata([I32(1)]))
            return c.get_dummy_value()

        return types.void(pointer, types.int64, first, second), generate

    return function


store_two, stream_two = _both(False), _both(True)


@intrinsic
def to_line(_, pointer, i):
    """Elements from element i on to where a line of the cache begins."""

    def generate(c, b, s, arguments):
        size = ITEMSIZE[pointer.element]
        address = b.add(arguments[0], b.mul(arguments[1], I64(size)))
        return b.udiv(b.and_(b.neg(address), I64(LINE - 1)), I64(size))

    return types.int64(pointer, types.int64), generate


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
        bits = b.shl(b.zext(values, _WIDE), _HALF)
        return b.bitcast(bits, llvm_of("float32"))
    return values


def _address_of_pairs(b: Any, pointer: Any, i: Any) -> Any:
    return b.inttoptr(b.add(pointer, b.mul(i, I64(2))), _WIDE.as_pointer())


def _narrowed(b: Any, kind: str, values: Any) -> Any:
    """What was computed, as it is in memory: rounded to the nearest, to even between two."""
    if kind == "float16":
        return b.fptrunc(values, ir.VectorType(ir.HalfType(), 16))
    if kind != "bfloat16":
        return values
    bits = b.lshr(_rounded_bits(b, values), _HALF)
    return b.trunc(bits, ir.VectorType(_I16, 16))


def _rounded_bits(b: Any, values: Any) -> Any:
    """Float32 whose upper halves are them as bfloat16."""
    bits = b.bitcast(values, _WIDE)
    odd = b.and_(b.lshr(bits, _HALF), _each(1))
    up = b.add(bits, b.add(odd, _each(0x7FFF)))
    return b.select(b.fcmp_unordered("uno", values, values), _each(0x7FC00000), up)
