"""What serving costs in memory, beside Python and torch: metered in a process of its own.

    python -m quantized_lm.bench.memory TASK

prints one JSON object, the fields of `Memory`.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from quantized_lm.bench.installs import last_line
from quantized_lm.bench.peers.protocol import Task
from quantized_lm.bench.workers import WorkerError

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # see proc(5)
_PASSES = 3


@dataclass(frozen=True)
class Memory:
    """Resident bytes of a process, above what it had once torch was imported.

    Attributes:
        packed_bytes: the model's files. threads: that computed.
        loaded_bytes: with the model loaded and one short text scored. scored_bytes: after scoring
            all lists. peak_bytes: the most while scoring them.
    """

    packed_bytes: int
    threads: int
    loaded_bytes: int
    scored_bytes: int
    peak_bytes: int

    @property
    def beyond_packed_bytes(self) -> int:
        """What is resident beside the packed weights."""
        return self.scored_bytes - self.packed_bytes

    @property
    def activation_bytes(self) -> int:
        """What a whole list adds at its peak to the loaded model."""
        return self.peak_bytes - self.loaded_bytes


def measure(task: Task) -> Memory:
    """Run the probe.

    Raises:
        WorkerError: it failed; the message is its last word.
    """
    done = subprocess.run(  # noqa: S603 - our own command line
        [sys.executable, "-m", "quantized_lm.bench.memory", json.dumps(asdict(task))],
        env={**os.environ, "OMP_NUM_THREADS": str(task.threads)},
        capture_output=True,
        check=False,
        text=True,
    )
    if done.returncode != 0:
        raise WorkerError(last_line(done.stderr))
    return Memory(**json.loads(done.stdout))


def probe(task: Task) -> Memory:
    """Load and score in this process, reading its resident size in between."""
    torch.ones(8, 8) @ torch.ones(8, 8)  # the thread pool and libraries that any use of torch loads
    start = _resident("VmRSS")
    from quantized_lm.bench import own  # noqa: PLC0415 - its memory is part of what is metered

    lists = json.loads(Path(task.lists).read_text(encoding="utf-8"))
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        # One hypothesis first: what is imported or built at the first use is no activation.
        json.dump([lists[0][:1], *lists], file)
        file.flush()
        system = own.create(replace(task, lists=file.name))
    system.score(0)
    gc.collect()
    loaded = _resident("VmRSS")
    _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    for index in [*range(1, len(lists) + 1)] * _PASSES:
        system.score(index)
    return Memory(
        packed_bytes=system.describe().model_bytes,
        threads=task.threads,
        loaded_bytes=loaded - start,
        scored_bytes=_resident("VmRSS") - start,
        peak_bytes=_resident("VmHWM") - start,
    )


def _resident(field: str) -> int:
    """Bytes that Linux says of this process."""
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(probe(Task(**json.loads(sys.argv[1]))))) + "\n")
