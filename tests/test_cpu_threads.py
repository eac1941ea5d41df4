"""The CPU kernels are right in forked children, in loader workers and in several threads at once.

The matrix of N35 runs in two fresh processes, side by side: in one a kernel ran in the parent
before, in the other not. Each sends what became of its children; a crash or a hang is one missing
line, not the end of the session.
"""

import functools
import multiprocessing
import os
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from oracle import K, sample
from test_cpu_kernels import (
    FLOAT,
    HALF,
    SOME,
    Case,
    count_launches,
    make,
    run,
    some_cases,
)
from torch.utils.data import DataLoader

from normlab import functional, reference
from normlab.ops import cpu
from normlab.ops.cpu import plan, team

SHAPE = (4, 8, 48, 48)  # 73728 elements, so that the team is used
LIMIT = 30  # seconds, for what takes one


@functools.cache
def examples():
    """Inputs and what the definition makes of them.

    Computed on one thread: torch's own operators hang in a child that is forked from a process in
    which they had a team. So nothing of torch but what normalizing takes is called in children.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = []
    for pattern in ("n (g=2 c) ... -> n g", "n c ... -> c"):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x, residual, dy = (
                sample(*SHAPE, seed=seed).to(memory_format=memory_format) for seed in range(3)
            )
            truth = normalized(reference.normalize, x.double(), residual.double(), dy, pattern)
            found.append(((x, residual, dy, pattern), truth))
    torch.set_num_threads(num_threads)
    return found


def normalized(normalize, x, residual, dy, pattern):
    """y and the gradients by x and residual."""
    x, residual = x.detach().requires_grad_(), residual.detach().requires_grad_()
    y = normalize(x, pattern, residual=residual, activation="silu")
    gradients = torch.autograd.grad(y, (x, residual), dy.to(y.dtype))
    return [t.detach().numpy() for t in (y, *gradients)]


def assert_norms_are_right():
    for inputs, truth in examples():
        x, residual, _, pattern = inputs
        assert cpu._task("forward", x, pattern, "silu", residual), "there is no kernel"
        for actual, expected in zip(normalized(functional.normalize, *inputs), truth):
            # the bound of `assert_within`
            bound = K[torch.float32] * np.finfo(np.float32).eps
            size = np.abs(expected).max()
            assert (np.abs(actual - expected) <= bound * (np.abs(expected) + size)).all()


class Checks(torch.utils.data.Dataset):
    """Items that are numbers, if norms are right where they are fetched."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        assert_norms_are_right()
        return i


def child(method, target=assert_norms_are_right):
    """Whether a process ends well, and in time; it is ended otherwise."""
    process = multiprocessing.get_context(method).Process(target=target)
    process.start()
    process.join(LIMIT)
    process.kill()
    process.join()
    return process.exitcode == 0


def loader(method, num_workers):
    """Whether workers of a loader find norms right."""
    workers = DataLoader(
        Checks(), num_workers=num_workers, multiprocessing_context=method, timeout=LIMIT
    )
    return [int(i) for batch in workers for i in batch] == [0, 1, 2, 3]


def fork_again():
    """In a forked child: another one."""
    assert_norms_are_right()
    sys.exit(not child("fork"))


def four_threads():
    wrong = []

    def check():
        try:
            assert_norms_are_right()
        except Exception as error:  # in a thread it would only be printed
            wrong.append(error)

    threads = [threading.Thread(target=check, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    return not wrong and not any(thread.is_alive() for thread in threads)


# threads come last: they run a kernel in this process
WAYS = {
    "forked": lambda: child("fork"),
    "forked twice": lambda: child("fork", fork_again),
    "forked loader": lambda: loader("fork", 2),
    "spawned": lambda: child("spawn"),
    "spawned loader": lambda: loader("spawn", 1),
    "four threads": four_threads,
}


def try_all_ways(before, sender):
    """Send the name of every way that is right."""
    warnings.simplefilter("ignore")  # Python's, of forking a process that has threads
    examples()
    torch.set_num_threads(2)
    if before:
        assert_norms_are_right()
    for name, way in WAYS.items():
        sender.send((name, way()))
    os._exit(0)


@pytest.fixture(scope="module")
def outcomes():
    """For both parents, what was right."""
    assert_norms_are_right()  # puts kernels on disk, so that no child takes long
    context = multiprocessing.get_context("spawn")
    running = {}
    for before in (False, True):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=try_all_ways, args=(before, sender))
        process.start()
        sender.close()
        running[before] = process, receiver
    found = {}
    deadline = time.monotonic() + 4 * LIMIT
    for before, (process, receiver) in running.items():
        found[before] = {}
        try:
            while receiver.poll(max(0.0, deadline - time.monotonic())):
                name, right = receiver.recv()
                found[before][name] = right
        except EOFError:
            pass
        process.kill()
        process.join()
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("before", [False, True], ids=["first there", "in the parent before"])
@pytest.mark.parametrize("way", WAYS)
def test_kernels_are_right_wherever_they_run(way, before, outcomes):
    """N35, F28"""
    assert outcomes[before].get(way, "nothing was heard of it") is True


@pytest.fixture
def num_threads():
    """Sets torch's number of threads for one test, and lets small tensors have a team."""
    before, small = torch.get_num_threads(), cpu.SMALL
    cpu.SMALL = 0
    cpu._planned.cache_clear()
    yield torch.set_num_threads
    torch.set_num_threads(before)
    cpu.SMALL = small
    cpu._planned.cache_clear()


@pytest.mark.parametrize("together", [True, False], ids=["together", "each on its own"])
@pytest.mark.parametrize("kind", [FLOAT, HALF], ids=["float32", "float16"])
@some_cases
def test_bits_do_not_depend_on_the_number_of_threads(
    case, kind, together, num_threads, monkeypatch
):
    """N32; whether all threads work on one statistic or each on its own changes nothing either"""
    launches = count_launches(monkeypatch)
    given = make(case, kind)
    num_threads(1)
    alone = run(given, case, kind)
    monkeypatch.setattr(plan, "together", lambda family, *_: together and family != "lines")
    for count in (2, 3):
        num_threads(count)
        assert all(map(torch.equal, run(given, case, kind), alone))
    assert launches == [1, 1, 2, 2, 3, 3]


@some_cases
def test_two_calls_give_the_same_bits(case, num_threads):
    """N32"""
    given = make(case, FLOAT)
    num_threads(2)
    first = run(given, case, FLOAT)
    assert all(all(map(torch.equal, run(given, case, FLOAT), first)) for _ in range(3))


@pytest.mark.parametrize("case", [c for c in SOME.values() if c.family != "planes"], ids=str)
def test_number_of_threads_may_change_between_calls(case, num_threads, monkeypatch):
    launches = count_launches(monkeypatch)
    given = make(case, FLOAT)
    num_threads(2)
    x, weight, bias, residual, dy = given
    how = (case.pattern, case.center, "silu")
    y, statistics = cpu.normalize(x, weight, bias, residual, case.pattern, 1e-5, True, "silu")
    num_threads(3)
    gradients = cpu.normalize_backward(dy, x, weight, bias, residual, statistics, *how)
    num_threads(1)
    expected = run(given, case, FLOAT)
    assert all(map(torch.equal, (statistics, y, *gradients), expected))
    assert launches == [2, 3, 1, 1]


def test_bits_are_the_same_while_other_threads_compute(num_threads):
    """Kernels of several threads, and torch's own teams beside them"""
    case, kind = Case("planes", "n (g=2 c) ... -> n g", SHAPE), FLOAT
    given = make(case, kind)
    num_threads(2)
    expected = run(given, case, kind)
    stop, found = threading.Event(), []

    def multiply():
        torch.set_num_threads(2)
        a = torch.ones(200, 200)
        while not stop.is_set():
            a = (a @ a).clamp(max=1.0)

    def normalize():
        torch.set_num_threads(2)
        for _ in range(20):
            found.append(all(map(torch.equal, run(given, case, kind), expected)))

    beside = threading.Thread(target=multiply)
    threads = [threading.Thread(target=normalize) for _ in range(3)]
    beside.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    stop.set()
    beside.join(LIMIT)
    assert found == [True] * 60


def test_gradients_are_right_where_autograd_has_threads(num_threads):
    """Backward passes of several graphs, started from several threads"""
    num_threads(2)
    assert four_threads()


def test_without_a_team_a_kernel_runs_alone(num_threads, monkeypatch):
    case = SOME["layer, 3 rows an item"]
    given = make(case, FLOAT)
    expected = run(given, case, FLOAT)
    monkeypatch.setattr(team, "openmp", lambda: team.ALONE)
    num_threads(2)
    assert all(map(torch.equal, run(given, case, FLOAT), expected))


def test_torch_brings_the_team_along():
    """So that the other tests are about threads at all"""
    if sys.platform != "linux" or "backend: OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("torch has no OpenMP here")
    assert team.openmp().parallel is not None
