"""The client in a process that has httpx and nothing else."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys, httpx
httpx.Client().close()
before = {name.partition(".")[0] for name in sys.modules}
import service.client
new = {name.partition(".")[0] for name in sys.modules} - before - set(sys.stdlib_module_names)
print(sorted(new))
"""


def test_it_needs_httpx_and_the_standard_library_alone() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], text=True, capture_output=True, check=True)
    new = done.stdout.strip()
    assert new == "['quantized_lm', 'service']"
