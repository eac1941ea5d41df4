"""What the compiler makes of the Triton kernels for sm_90, without a GPU: what is launched for real
shapes is recorded on tensors without data, then compiled.
"""

import importlib
import re
import subprocess

import pytest
import torch

from normlab.ops import device

triton = pytest.importorskip("triton")
JITFunction = triton.runtime.jit.JITFunction

H100 = triton.backends.compiler.GPUTarget("cuda", 90, 32)
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
GROUP = "n (g=32 c) ... -> n g"
WIDE = r"\.v4\.[bfu]32|\.v2\.[bfu]64"  # 16 bytes


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where the compiler keeps what it made, for as long as this file runs."""
    return tmp_path_factory.mktemp("triton")


@pytest.fixture
def launched(monkeypatch, cache):
    """A function that makes a call, and returns its result and the kernels it would launch."""
    kernels = importlib.import_module(device.KERNELS["cuda"])
    found = []

    def record(kernel, *args, grid, warmup, **options):
        found.append(compiled(kernel, args, options))

    def call(name, *args):
        found.clear()
        result = getattr(kernels, name)(*args)
        return result, list(found)

    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    monkeypatch.setattr(kernels, "INTERPRETED", True)  # not on a GPU, yet not for plain torch
    monkeypatch.setattr(JITFunction, "run", record)
    return call


def compiled(kernel, args, options):
    """A kernel for the types of these arguments, in memory as torch allocates it."""
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = args[i] if i < len(args) else options[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name] = "constexpr"
            constants[i,] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            if not parameter.do_not_specialize_on_alignment:
                attributes[i,] = [["tt.divisibility", 16]]
        else:
            is_float = isinstance(value, float)
            signature[parameter.name] = "fp32" if is_float else parameter.annotation_type or "i32"
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=H100, options={"num_warps": options["num_warps"]})


def both_passes(launched, shape, pattern, dtype, memory_format, activation="silu"):
    """Kernels of a forward and a backward pass, by name."""
    x = torch.empty(shape, device="meta", dtype=dtype).to(memory_format=memory_format)
    weight = torch.empty(shape[1], device="meta")
    given = (x, weight, weight, None)
    (_, statistics), forward = launched("normalize", *given, pattern, 1e-5, True, activation)
    _, backward = launched("normalize_backward", x, *given, statistics, pattern, True, activation)
    return {kernel.metadata.name: kernel for kernel in [*forward, *backward]}


FIRST, LAST = torch.contiguous_format, torch.channels_last
MAIN = [
    pytest.param(
        (32, 256, 28, 28), GROUP, FIRST, ["whole_forward", "whole_backward", "merge_rows"],
        id="group norm kept on the chip",
    ),
    pytest.param(
        (8, 1280, 16, 16), GROUP, LAST, ["whole_forward", "long_backward", "merge_rows"],
        id="group norm kept on the chip, channels last",
    ),
    pytest.param(
        (8, 320, 64, 64), GROUP, FIRST, ["long_forward", "long_backward", "merge_rows"],
        id="group norm of larger maps",
    ),
    pytest.param(
        (1, 128, 512, 512), GROUP, FIRST,
        ["chunk_moments", "split_apply", "chunk_gradients", "merge_gradients", "split_dx"],
        id="group norm of one large sample: its programs merge moments themselves",
    ),
    pytest.param(
        (32, 256, 56, 56), "n c ... -> c", LAST,
        ["chunk_moments", "merge_moments", "split_apply",
         "chunk_gradients", "merge_gradients", "split_dx"],
        id="batch norm, channels last",
    ),
    pytest.param(
        (8, 1024, 16, 16), "n c ... -> c", FIRST, ["whole_forward", "whole_backward"],
        id="batch norm of small maps",
    ),
    pytest.param(
        (8192, 4096), "n c -> n", FIRST, ["whole_forward", "whole_backward", "merge_rows"],
        id="rows",
    ),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "pattern", "memory_format", "names"), MAIN)
def test_main_kernels_read_16_bytes_at_once_and_do_not_spill(
    launched, shape, pattern, memory_format, names, dtype
):
    found = both_passes(launched, shape, pattern, dtype, memory_format)
    assert list(found) == names
    for name, kernel in found.items():
        assert not spills(kernel), name
        if not name.startswith("merge"):
            assert re.search(rf"ld\.global[.\w]*({WIDE})", kernel.asm["ptx"]), name
        if name.endswith(("forward", "backward", "apply", "dx")):
            assert re.search(rf"st\.global[.\w]*({WIDE})", kernel.asm["ptx"]), name


def spills(kernel):
    """Bytes of registers that ptxas keeps in memory."""
    report = subprocess.run(
        [triton.knobs.nvidia.ptxas.path, "-v", "-arch=sm_90a", "-o", "/dev/null", "-"],
        input=kernel.asm["ptx"], capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    return int(re.search(r"(\d+) bytes spill stores", report)[1])


@pytest.mark.parametrize(("shape", "pattern", "memory_format", "names"), MAIN)
def test_offsets_are_computed_in_64_bits(launched, shape, pattern, memory_format, names):
    """N36: every offset added to a pointer is int64, and so is every product it is made of."""
    found = both_passes(launched, shape, pattern, torch.float32, memory_format)
    for name, kernel in found.items():
        code = kernel.asm["ttir"]
        offsets = re.findall(r"tt\.addptr .*?, (?:tensor<[\dx]*)?(i\d+)>?(?: loc|$)", code, re.M)
        assert set(offsets) == {"i64"}, name
        assert len(offsets) == code.count("tt.addptr"), name
        products = re.findall(r"arith\.muli %(\w+), %\w+ : (?:tensor<[\dx]*)?i32", code)
        # but positions within a tile that spans samples, see `tile.offset_in_slice`
        assert all(product.startswith(("local", "size")) for product in products), name
