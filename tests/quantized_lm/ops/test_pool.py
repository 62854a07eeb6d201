"""Claims about the native threads. What they compute is tested wherever a backend has several."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from quantized_lm.ops import BackendOptions, PackedWeight
from quantized_lm.ops.cpu import CpuBackend
from quantized_lm.ops.linear import linear
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.rtn import round_to_nearest

LOADED = """
import os, signal, sys, threading, time
from quantized_lm.artifact import bundled_path, load_artifact
from quantized_lm.errors import BackendError
from quantized_lm.scoring import ScoreRequest, score_lists

loaded = load_artifact(bundled_path("en-small"), backend="cpu", threads=int(sys.argv[1]))
"""
FORKED = """
child = os.fork()
if child == 0:
    signal.alarm(60)  # or a child that hangs stays
    try:
        score_lists([ScoreRequest(("yes",))], loaded)
    except BackendError as error:
        print(error, flush=True)
    del loaded
else:
    status = os.waitpid(child, 0)[1]
    print(status, score_lists([ScoreRequest(("yes",))], loaded)[0].log_prob)
"""
# A tree that has its nodes is being run.
FORKED_IN_A_PASS = """
import numpy as np

nodes = np.arange(6000, dtype=np.int32)
one = np.ones(1, np.int32)
state = loaded.model.new_state()
passing = threading.Thread(target=loaded.model.extend, args=([state], [nodes // 2], [nodes % 1000]))
passing.start()
while len(state) == 1:
    time.sleep(0)
child = os.fork()
if child == 0:
    signal.alarm(20)
    for tree in (loaded.model.new_state(), state):
        try:
            loaded.model.extend([tree], [one], [one])
        except BackendError as error:
            print(error, flush=True)
    os._exit(0)
else:
    is_under_way = passing.is_alive()
    status = os.waitpid(child, 0)[1]
    passing.join()
    print(is_under_way, status, loaded.model.extend([state], [one], [one])[0].shape)
"""
# The interpreter flushes when it has begun to end, and here waits so for the work to end before it.
LEFT = """
import sys, threading, time

class Slow:
    closed = False

    def flush(self):
        time.sleep(1)

begun = threading.Event()

def do():
    begun.set()
    work()

threading.Thread(target=do, daemon=True).start()
begun.wait()
sys.stdout = Slow()
"""
PASS = """
requests = [ScoreRequest(tuple(f"{number} hello there my friend" for number in range(200)))]

def work():
    score_lists(requests, loaded)
"""
# The best word sequences of a lattice that has too many: some tenths of a second.
SEARCH = """
import numpy as np
from quantized_lm.ops import _cpu

src = np.repeat(np.arange(3000, dtype=np.int32), 60)
word = np.tile(np.arange(1, 61, dtype=np.int32), 3000)
score = np.random.default_rng(0).standard_normal(len(src))
prefixes = _cpu.WordPrefixes(src, src + 1, word, score)

def work():
    prefixes.best(2**62, 1_000_000)
"""
# Short work of several threads: when the interpreter ends, some wait for it.
MANY = """
import threading
import numpy as np
from quantized_lm.ops import _cpu

src, word = np.arange(30, dtype=np.int32), np.ones(30, dtype=np.int32)
prefixes = _cpu.WordPrefixes(src, src + 1, word, np.zeros(30))

def repeat():
    while True:
        prefixes.best(2**62, 10)

def work():
    for _ in range(7):
        threading.Thread(target=repeat, daemon=True).start()
    repeat()
"""
# Python that is called by ours.
CALLED = """
import time
from quantized_lm._tokens import Encoder

def spell(chunk):
    time.sleep(0.3)
    return [[1]]

def work():
    Encoder(8, 8, 0, 0).encode(("word",), spell)
"""
# A thread's stack takes 8 MiB of what this process may address.
LIMITED = """
import resource, time
from pathlib import Path
from quantized_lm.errors import BackendError
from quantized_lm.ops import select_backend

resource.setrlimit(resource.RLIMIT_STACK, (8 << 20, 8 << 20))
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
count_threads = lambda: len(list(Path("/proc/self/task").iterdir()))
before = count_threads()  # numpy has its own
try:
    select_backend("cpu", threads=1024)
except BackendError as error:
    print(error)
# The system lists a thread for a moment longer than it takes to join it.
until = time.monotonic() + 10
while count_threads() > before and time.monotonic() < until:
    time.sleep(0.01)
print(count_threads() - before)
"""
pytestmark = pytest.mark.usefixtures("cpu")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def threads_of_process() -> set[int]:
    return {int(path.name) for path in Path("/proc/self/task").iterdir()}


def small_weight(backend: CpuBackend) -> PackedWeight:
    weight = np.random.default_rng(1).standard_normal((70, 50)).astype(np.float32)
    return backend.prepare(round_to_nearest(weight, Grid.named("2bit")))


def normal(num_rows: int) -> Tensor:
    return torch.randn(num_rows, 50, generator=torch.Generator().manual_seed(0))


@on_linux
def test_a_pool_starts_threads_and_takes_them_along() -> None:
    before = threads_of_process()
    backend = CpuBackend.create(BackendOptions(threads=4))
    linear(normal(200), small_weight(backend))
    assert len(threads_of_process() - before) == 3
    del backend
    until = time.monotonic() + 10  # listed for a moment longer than it takes to join them
    while not threads_of_process() <= before and time.monotonic() < until:
        time.sleep(0.01)
    assert threads_of_process() <= before


@on_linux
def test_pinned_threads_stay_on_one_core_and_the_caller_is_free_again() -> None:
    before, allowed = threads_of_process(), os.sched_getaffinity(0)
    backend = CpuBackend.create(BackendOptions(threads=3, pins=True))
    linear(normal(200), small_weight(backend))
    workers = threads_of_process() - before
    assert len(workers) == 2
    cores = sorted(allowed)
    expected = sorted([cores[thread % len(cores)]] for thread in (1, 2))
    assert sorted(sorted(os.sched_getaffinity(worker)) for worker in workers) == expected
    assert os.sched_getaffinity(0) == allowed


@on_linux
def test_threads_that_the_system_does_not_have_are_refused() -> None:
    done = ran(LIMITED)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch("1024 threads cannot be started: .*; need fewer\n0\n", done.stdout)


@pytest.mark.parametrize("threads", [1, 2, 3, 64])
def test_any_number_of_threads_gives_the_same_bits(cpu: CpuBackend, threads: int) -> None:
    x = normal(100)
    weight = small_weight(CpuBackend.create(BackendOptions(threads=threads)))
    assert torch.equal(linear(x, weight), linear(x, small_weight(cpu)))
    assert torch.equal(linear(x[:1], weight), linear(x[:1], small_weight(cpu)))


def test_callers_of_one_pool_wait_for_each_other(cpu: CpuBackend) -> None:
    weight = small_weight(CpuBackend.create(BackendOptions(threads=3)))
    expected = linear(normal(40), small_weight(cpu))
    with ThreadPoolExecutor(8) as callers:
        for y in callers.map(lambda _: linear(normal(40), weight), range(200)):
            assert torch.equal(y, expected)


def test_a_pool_that_has_ended_is_not_found() -> None:
    backend: Any = CpuBackend.create(BackendOptions(threads=2))
    weight, handle = small_weight(backend), backend.pool_handle
    parts = [torch.from_numpy(part) for part in weight.parts]
    arguments = (normal(2), parts, list(weight.layout), backend.variant)
    operator = torch.ops.secondpass.linear_cpu
    operator(*arguments, handle)
    del backend, weight
    with pytest.raises(ValueError, match=f"no pool has handle {handle}"):
        operator(*arguments, handle)


def ran(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of its own."""
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_is_refused_the_threads_it_lacks_and_ends() -> None:
    done = ran(LOADED + FORKED, "2")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.endswith("made before this process was forked; load the model after the fork")
    assert second.startswith("0 [-")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_of_one_thread_works_on() -> None:
    done = ran(LOADED + FORKED, "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0 [-")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_child_forked_in_a_pass_is_refused_what_nobody_will_end(threads: str) -> None:
    done = ran(LOADED + FORKED_IN_A_PASS, threads)
    assert done.returncode == 0, done.stderr
    refusal = "a pass was under way when this process was forked; load the model after the fork"
    assert done.stdout.splitlines() == [refusal, refusal, "True 0 (1,)"]


@pytest.mark.parametrize("work", [LOADED + PASS, SEARCH, MANY, CALLED])
def test_a_daemon_thread_at_work_lets_the_process_end(work: str) -> None:
    done = ran(work + LEFT, "2")
    assert (done.returncode, done.stderr) == (0, "")
