"""Kernels from Python to machine code, kept on disk between processes.

Numba turns a kernel, a Python function of one address, into LLVM's language; llvmlite turns that
into object code, which is what is kept: loading it takes milliseconds and does not import Numba.

Kept objects are code that will be run, so they lie in a folder of the user's own (mode 0700, in
$NORMLAB_CACHE, else $XDG_CACHE_HOME/normlab, else ~/.cache/normlab), which is refused if anybody
else may write there. A file begins with the SHA-256 of its rest and is named by what it was made
from: the kernel, the sources of this package, the versions, the processor. A damaged one is made
again.
"""

import ctypes
import functools
import hashlib
import importlib
import os
import stat
import tempfile
import threading
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import llvmlite.binding as llvm

LIBM = ("erfc", "sqrt")  # what kernels call of the C library
DIGEST = hashlib.sha256().digest_size
Entry = Callable[[int], None]  # takes the address of a kernel's words

_lock = threading.RLock()
_busy = False  # Numba is at work
_orphaned = False  # ... and was when this process was forked: it cannot be used here
_engines: list[llvm.ExecutionEngine] = []  # own the code, so they live as long as the process


@functools.cache
def entry(module: str, *options: object) -> Entry:
    """The compiled kernel that `<module>.kernel(*options)` of this package returns.

    Raises:
        Exception: whatever hinders compiling; callers do without the kernel then.
    """
    global _busy
    with _lock:
        key = _key(module, options)
        code = _read(key)
        if code is None:
            if _orphaned:
                raise RuntimeError("this process was forked while another thread compiled")
            _busy = True
            try:
                code = _compiled(module, options)
            finally:
                _busy = False
            _write(key, code)
        return _loaded(code)


def _after_fork() -> None:
    """The lock may be held by a thread that stayed behind, and Numba be half way through."""
    global _lock, _orphaned
    _lock = threading.RLock()
    _orphaned = _busy


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _compiled(module: str, options: tuple) -> bytes:
    """Object code whose one public function is named `kernel`."""
    from normlab.ops.cpu.parallel import jit

    function = jit(importlib.import_module(f"normlab.ops.cpu.{module}").kernel(*options))
    function.compile("void(int64)")
    (signature,) = function.signatures
    text = function.inspect_llvm(signature)
    functions = llvm.parse_assembly(text).functions
    (made,) = (
        f.name for f in functions if f.linkage is llvm.Linkage.external and not f.is_declaration
    )
    code = llvm.parse_assembly(text + _ENTRY.format(made))
    code.verify()
    declared = {f.name for f in code.functions if f.is_declaration}
    if foreign := {name for name in declared if not name.startswith("llvm.")} - {*LIBM}:
        raise RuntimeError(f"kernels call nothing but {LIBM}; {module} calls {sorted(foreign)}")
    return _machine().emit_object(code)


# Numba's functions return a status, which kernels have no use for: they cannot raise
_ENTRY = """
define void @kernel(i64 %words) {{
  %result = alloca ptr
  %error = alloca ptr
  %status = call i32 @"{}"(ptr %result, ptr %error, i64 %words)
  ret void
}}
"""


def _loaded(code: bytes) -> Entry:
    """The kernel in object code, as a function that releases the GIL."""
    library = ctypes.CDLL(None if os.name == "posix" else "msvcrt")
    for name in LIBM:
        address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        llvm.add_symbol(name, address)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    address = engine.get_function_address("kernel")
    if not address:
        raise RuntimeError("the object code has no function named kernel")
    _engines.append(engine)
    return ctypes.CFUNCTYPE(None, ctypes.c_int64)(address)


def _machine() -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=_features(), opt=3, jit=True, codemodel="jitdefault"
    )


def _features() -> str:
    return llvm.get_host_cpu_features().flatten()


def _key(module: str, options: tuple) -> str:
    made_from = (module, options, _sources(), version("numba"), version("llvmlite"),
                 llvm.get_default_triple(), llvm.get_host_cpu_name(), _features())  # fmt: skip
    return hashlib.sha256(repr(made_from).encode()).hexdigest()


@functools.cache
def _sources() -> str:
    """A digest of every file kernels are written in."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


@functools.cache
def folder() -> Path | None:
    """Where objects are kept; None if there is no place that is the user's alone."""
    try:
        path = _place() / "kernels"
    except RuntimeError:
        _do_without("there is no home directory; set NORMLAB_CACHE to a folder of yours")
        return None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        why_not = _danger(path.parent) or _danger(path)
    except OSError as error:
        why_not = f"{path} cannot be made ({error.strerror})"
    if not why_not:
        return path
    _do_without(why_not)
    return None


def _place() -> Path:
    if own := os.environ.get("NORMLAB_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "normlab"


def _danger(path: Path) -> str:
    """Why a folder is not the user's alone; empty if it is."""
    state = path.lstat()
    if not stat.S_ISDIR(state.st_mode):
        return f"{path} is not a folder"
    if hasattr(os, "getuid") and state.st_uid != os.getuid():
        return f"{path} belongs to another user"
    if state.st_mode & 0o022:
        return f"others may write to {path}; chmod 700 it"
    return ""


def _do_without(reason: str) -> None:
    warnings.warn(
        f"normlab compiles its kernels anew in every process: {reason}",
        RuntimeWarning,
        stacklevel=2,
    )


def _read(key: str) -> bytes | None:
    """An object that was kept, if it is whole."""
    kept = folder()
    if kept is None:
        return None
    try:
        content = (kept / key).read_bytes()
    except OSError:
        return None
    digest, code = content[:DIGEST], content[DIGEST:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(key: str, code: bytes) -> None:
    """Keep an object; a full or read-only disk costs the next process a second, no more."""
    kept = folder()
    if kept is None:
        return
    name = ""
    try:
        handle, name = tempfile.mkstemp(dir=kept)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(name, kept / key)
    except OSError as error:
        if name:
            Path(name).unlink(missing_ok=True)
        _do_without(f"{kept} cannot be written ({error.strerror})")
