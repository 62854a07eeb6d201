"""What a server process carries."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import service.server
from quantized_lm.artifact import bundled_path, load_artifact
load_artifact(bundled_path("en-small"))
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""


def test_a_served_model_does_not_bring_the_compiler() -> None:
    # It takes more than a second to import, and 70 MB.
    done = subprocess.run([sys.executable, "-c", CODE], text=True, capture_output=True, check=True)
    assert done.stdout.strip() == "[]"
