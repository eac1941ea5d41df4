"""Kernels are kept where only their user may write, and whatever hinders that costs time only."""

import errno
import functools
import hashlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import warnings

import pytest
import torch
from oracle import assert_within, sample

from normlab import functional, reference
from normlab.ops import cpu, device
from normlab.ops.cpu import jit

PATTERN = "n c ... -> n"
KERNEL = ("lines_forward", "float32", "none", False)  # what `assert_right` runs
posix = pytest.mark.skipif(os.name != "posix", reason="modes and owners are those of POSIX")


@functools.cache
def code():
    """The object of `KERNEL`."""
    return jit._compiled(KERNEL[0], KERNEL[1:])


def assert_right(dtype=torch.float32, activation=None):
    x = sample(3, 50, dtype=dtype)
    y = functional.normalize(x, PATTERN, activation=activation)
    assert_within(y, reference.normalize(x, PATTERN, activation=activation))


def forget():
    for cached in (jit.folder, jit.entry, cpu._kernel, cpu._planned, device.warn_slow):
        cached.cache_clear()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder kernels are to be kept in; as if none had been used by this process yet."""
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "cache"))
    forget()
    yield tmp_path / "cache" / "kernels"
    forget()


@pytest.fixture
def compiled(monkeypatch):
    """What was compiled; not really, as that takes a second."""
    names = []
    known = code()

    def compile_(module, options):
        assert (module, *options) == KERNEL
        names.append(module)
        return known

    monkeypatch.setattr(jit, "_compiled", compile_)
    return names


@pytest.fixture
def loaded(monkeypatch):
    """The objects that were loaded, to be run; one that is not `code` is not."""
    objects = []
    load = jit._loaded

    def load_(found):
        objects.append(found)
        return load(code())

    monkeypatch.setattr(jit, "_loaded", load_)
    return objects


def warned(function=assert_right, action="always"):
    """What a function warned of."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter(action)
        function()
    return [(w.category, str(w.message)) for w in found]


@posix
def test_folder_is_made_for_its_user_alone(cache, compiled):
    before = os.umask(0)
    try:
        assert_right()
    finally:
        os.umask(before)
    assert cache.stat().st_mode & 0o777 == 0o700
    assert cache.parent.stat().st_mode & 0o777 == 0o700
    (kept,) = cache.iterdir()
    assert kept.stat().st_mode & 0o077 == 0


def test_object_is_kept_and_loaded_the_next_time(cache, compiled, loaded):
    assert_right()
    forget()
    assert_right()
    assert compiled == ["lines_forward"]
    assert loaded == [code(), code()]


@posix
@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        pytest.param(lambda c: c.chmod(0o770), "others may write", id="writable for the group"),
        pytest.param(lambda c: c.chmod(0o702), "others may write", id="writable for everybody"),
        pytest.param(
            lambda c: c.parent.chmod(0o777), "others may write", id="in a writable folder"
        ),
        pytest.param(
            lambda c: c.symlink_to(c.rename(c.with_name("else"))), "is not a folder", id="a link"
        ),
        pytest.param(
            lambda c: c.write_bytes(c.rename(c.with_name("else")).name.encode()),
            "cannot be made", id="a file is in its place",
        ),
    ],
)  # fmt: skip
def test_folder_that_is_not_safe_is_not_used(cache, compiled, loaded, prepare, message):
    """S17"""
    assert_right()
    (kept,) = cache.iterdir()
    kept.write_bytes(b"anything")
    prepare(cache)
    forget()
    ((category, text),) = warned()
    assert category is RuntimeWarning
    assert message in text
    assert str(cache.parent) in text
    assert loaded == [code(), code()]
    assert compiled == ["lines_forward"] * 2


@posix
def test_folder_of_another_user_is_not_used(cache, compiled, monkeypatch):
    """S17"""
    assert_right()
    forget()
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    ((category, text),) = warned()
    assert category is RuntimeWarning
    assert "belongs to another user" in text
    assert compiled == ["lines_forward"] * 2


def refuse(*_, **options):
    raise OSError(errno.EROFS, "Read-only file system")


def onto_a_full_disk(handle, mode):
    os.close(handle)
    return open("/dev/full", mode)  # where there is none, that too is an OSError


BROKEN = {
    "full disk": ("jit.os.fdopen", onto_a_full_disk),
    "read-only": ("jit.tempfile.mkstemp", refuse),
    "no name left": ("jit.os.replace", refuse),
}


@pytest.mark.parametrize(("where", "fault"), BROKEN.values(), ids=BROKEN)
def test_folder_that_cannot_be_written_costs_time_only(cache, compiled, monkeypatch, where, fault):
    """F27"""
    monkeypatch.setattr(f"normlab.ops.cpu.{where}", fault)
    ((category, text),) = warned()
    assert category is RuntimeWarning
    assert "cannot be written" in text
    assert compiled == ["lines_forward"]


@pytest.mark.parametrize(("where", "fault"), BROKEN.values(), ids=BROKEN)
def test_what_could_not_be_kept_leaves_nothing_behind(cache, compiled, monkeypatch, where, fault):
    monkeypatch.setattr(f"normlab.ops.cpu.{where}", fault)
    warned()
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(("where", "fault"), BROKEN.values(), ids=BROKEN)
def test_many_kernels_that_cannot_be_kept_warn_once(cache, monkeypatch, where, fault):
    """F27; as Python shows warnings unless told otherwise"""
    monkeypatch.setattr(jit, "_compiled", lambda module, options: code())
    monkeypatch.setattr(f"normlab.ops.cpu.{where}", fault)
    many = functools.partial(map, functools.partial(jit.entry, "lines_forward"))
    texts = warned(lambda: list(many("abc")), action="default")
    assert len(texts) == 1


def test_without_a_home_kernels_are_compiled(cache, compiled, monkeypatch):
    """As for a user a container was given by number alone"""
    monkeypatch.delenv("NORMLAB_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(jit.Path, "home", homeless)
    ((category, _),) = warned()
    assert compiled == ["lines_forward"]
    assert category is RuntimeWarning


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda c: b"", id="empty"),
        pytest.param(lambda c: c[: jit.DIGEST], id="the digest alone"),
        pytest.param(lambda c: c[: len(c) // 2], id="half"),
        pytest.param(lambda c: c[:-1], id="a byte short"),
        pytest.param(lambda c: c + b"\0", id="a byte long"),
        pytest.param(lambda c: flipped(c, 0), id="a bit of the digest"),
        pytest.param(lambda c: flipped(c, len(c) // 2), id="a bit of the code"),
        pytest.param(lambda c: flipped(c, len(c) - 1), id="the last bit"),
    ],
)
def test_damaged_object_is_never_run_but_made_again(cache, compiled, loaded, damage):
    assert_right()
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    forget()
    assert_right()
    assert loaded == [code(), code()]
    assert compiled == ["lines_forward"] * 2
    assert kept.read_bytes() == whole


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda m: m.setattr(jit, "_sources", lambda: "others"), id="sources"),
        pytest.param(lambda m: m.setattr(jit, "version", lambda _: "9.9"), id="versions"),
        pytest.param(
            lambda m: m.setattr(jit.llvm, "get_host_cpu_name", lambda: "m68k"), id="processor"
        ),
        pytest.param(lambda m: m.setattr(jit, "_features", lambda: "+mmx"), id="its features"),
    ],
)
def test_what_an_object_is_made_from_is_its_name(change, monkeypatch):
    before = jit._key(KERNEL[0], KERNEL[1:])
    change(monkeypatch)
    assert jit._key(KERNEL[0], KERNEL[1:]) != before


def without_kernels():
    """Forward and backward of three sizes, right and warned of once."""

    def compute():
        for size in (40, 50, 60):
            x = sample(3, size).requires_grad_()
            wide = x.detach().double().requires_grad_()
            y, truth = functional.normalize(x, PATTERN), reference.normalize(wide, PATTERN)
            assert_within(y, truth)
            found, expected = (
                torch.autograd.grad(output.square().sum(), given)[0]
                for output, given in ((y, x), (truth, wide))
            )
            assert_within(found, expected, size=1)

    ((category, text),) = warned(compute)
    assert category is device.SlowPathWarning
    return text


def test_failing_compiler_leaves_plain_torch(cache, monkeypatch):
    """F27"""

    def fail(*_):
        raise OSError("no compiler today")

    monkeypatch.setattr(jit, "_compiled", fail)
    assert without_kernels() == (
        "normlab computes in plain torch, as its kernels cannot be compiled: "
        "OSError: no compiler today"
    )


def test_missing_numba_leaves_plain_torch(cache, monkeypatch):
    """F27"""
    for name in [m for m in sys.modules if m.partition(".")[0] == "numba"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)
    assert "numba" in without_kernels()


def test_missing_llvmlite_leaves_plain_torch(cache, monkeypatch):
    """F27: then not even the functions of the CPU can be loaded"""
    for name in [m for m in sys.modules if m.startswith("normlab.ops.cpu")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    device.code_for.cache_clear()
    try:
        assert "llvmlite" in without_kernels()
    finally:
        device.code_for.cache_clear()


def python(*lines, **variables):
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], env=os.environ | variables,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr or f"ended by signal {-done.returncode}"
    return done.stdout.split()


def test_second_process_runs_what_the_first_compiled_without_numba(cache):
    """Conversions of numbers, and a function of the C library, need nobody's help"""
    lines = (
        "import sys, torch",
        "from normlab.functional import normalize",
        "for dtype, activation in ((torch.float16, 'silu'), (torch.float64, 'gelu')):",
        "    x = torch.linspace(-3, 3, 64, dtype=dtype).view(2, 32)",
        "    y = normalize(x, 'n c ... -> n', activation=activation)",
        "    print('numba' in sys.modules, y.double().sum().item())",
    )
    first, second = (python(*lines, NORMLAB_CACHE=str(cache.parent)) for _ in range(2))
    assert first[0] == "True"
    assert second == ["False", first[1], "False", first[3]]


def ended_well(*processes):
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
        process.join()
    return all(process.exitcode == 0 for process in processes)


def test_two_processes_that_compile_at_once_are_both_right(cache):
    process = multiprocessing.get_context("spawn").Process
    assert ended_well(process(target=assert_right), process(target=assert_right))
    (kept,) = cache.iterdir()
    digest, whole = kept.read_bytes()[: jit.DIGEST], kept.read_bytes()[jit.DIGEST :]
    assert hashlib.sha256(whole).digest() == digest


def fork_while_compiling():
    """In a process of its own: fork while another thread is busy with a kernel."""
    compile_, busy = jit._compiled, threading.Event()

    def slowly(*what):
        busy.set()
        time.sleep(0.5)
        return compile_(*what)

    jit._compiled = slowly
    thread = threading.Thread(target=assert_right)
    thread.start()
    busy.wait()
    jit._compiled = compile_
    child = multiprocessing.get_context("fork").Process(target=assert_right)
    child.start()
    child.join(10)
    child.kill()
    thread.join()
    sys.exit(child.exitcode != 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_child_forked_while_a_kernel_is_compiled_does_not_hang(cache):
    """F28"""
    process = multiprocessing.get_context("spawn").Process
    assert ended_well(process(target=fork_while_compiling))


def test_threads_that_want_one_kernel_at_once_compile_it_once(cache, compiled):
    together = threading.Barrier(4)

    def want():
        together.wait()
        jit.entry(*KERNEL)

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compiled == ["lines_forward"]
