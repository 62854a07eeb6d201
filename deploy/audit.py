"""Look up the installed packages among the known vulnerabilities: `python audit.py PIP_AUDIT`.

pip-audit says "No known vulnerabilities found" and exits 0 also where the advisory service knows
none of the packages, or is not there. So what it really looked up is counted. Exit 1: something is
vulnerable. Exit 0: nothing is, or the check was skipped; the last line says which.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig

TIMEOUT_S = 600.0


def main() -> int:
    """Audit the packages of the Python that runs this."""
    args = (sys.argv[1], "--path", sysconfig.get_path("purelib"), "--skip-editable")
    options = ("--progress-spinner", "off", "--format", "json", "--timeout", "15")
    try:
        done = subprocess.run(  # noqa: S603 - the program that the Makefile has installed
            [*args, *options], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return say(0, f"skipped: pip-audit was not done after {TIMEOUT_S:.0f} s")
    try:
        found = json.loads(done.stdout)["dependencies"]
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return say(0, f"skipped: pip-audit did not get through ({last})")
    known = [package for package in found if "skip_reason" not in package]
    if not known:
        return say(0, f"skipped: the advisory service knows none of {len(found)} packages")
    faulty = [package for package in known if package["vulns"]]
    for package in faulty:
        ids = ", ".join(one["id"] for one in package["vulns"])
        say(1, f"{package['name']} {package['version']}: {ids}")
    return say(
        1 if faulty else 0,
        f"{len(faulty)} vulnerable of {len(known)} known, {len(found)} installed",
    )


def say(code: int, line: str) -> int:
    """Print a line; the exit code that goes with it."""
    sys.stdout.write(line + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
