"""Native code alone, without Python: under sanitizers, emulated CPUs, and ARM."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[3] / "quantized_lm" / "ops" / "csrc"
IS_X86 = platform.machine() in {"x86_64", "AMD64"}


def build(folder: Path, *options: str, target: str = "all") -> Path:
    """Build the programs of tests/native, or one of them; the path of kernel_check."""
    configure = ["cmake", "-S", str(CSRC), "-B", str(folder), "-DSECONDPASS_KERNEL_CHECK=ON"]
    subprocess.run([*configure, *options], check=True, capture_output=True)
    make = ["cmake", "--build", str(folder), "-j2", "--target", target]
    subprocess.run(make, check=True, capture_output=True)
    return folder / "kernel_check"


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    arguments = [str(part) for part in command]
    return subprocess.run(arguments, check=False, text=True, capture_output=True)


def require(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("cmake")
    return build(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("cmake")
    return build(tmp_path_factory.mktemp("sanitized"), "-DSECONDPASS_SANITIZE=address,undefined")


def test_every_kernel_is_right_under_sanitizers(sanitized: Path) -> None:
    checked = run(sanitized)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "scalar: right" in checked.stdout


def test_token_memos_and_trees_are_right_under_sanitizers(sanitized: Path) -> None:
    checked = run(sanitized.with_name("token_check"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout == "tokens: right\n"


def test_engines_are_right_under_sanitizers(sanitized: Path) -> None:
    program = sanitized.with_name("engine_check")
    checked = run(program)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "scalar: right" in checked.stdout
    faulty = run(program, "--fault")
    assert faulty.returncode == 1
    assert ": right" not in faulty.stdout


def test_threads_of_an_engine_do_not_race(tmp_path: Path) -> None:
    require("cmake")
    build(tmp_path, "-DSECONDPASS_SANITIZE=thread", target="engine_check")
    checked = run(tmp_path / "engine_check")
    if "unexpected memory mapping" in checked.stderr:
        pytest.skip("the thread sanitizer cannot place its memory: addresses are too random here")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stderr == ""
    assert "scalar: right" in checked.stdout


@pytest.mark.parametrize("fault", ["scale", "level", "code", "column", "gate"])
def test_a_planted_fault_is_found_in_every_instruction_set(plain: Path, fault: str) -> None:
    checked = run(plain, "--fault", fault)
    assert checked.returncode == 1
    assert ": right" not in checked.stdout


@pytest.mark.skipif(not IS_X86, reason="emulates other x86 CPUs")
@pytest.mark.parametrize(
    ("cpu", "expected"), [("max", ["scalar", "avx2"]), ("Nehalem", ["scalar"])]
)
def test_cpus_without_avx512_choose_and_run_what_they_have(
    plain: Path, cpu: str, expected: list[str]
) -> None:
    checked = run(require("qemu-x86_64"), "-cpu", cpu, plain, "--rounds", "2")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.split("\n")[: len(expected)] == [f"{isa}: right" for isa in expected]
    assert checked.stdout.count("right") == len(expected)


@pytest.mark.skipif(not IS_X86, reason="cross-compiles")
def test_arm_cpus_run_neon(tmp_path: Path) -> None:
    emulator = require("qemu-aarch64")
    program = build(
        tmp_path,
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={require('aarch64-linux-gnu-g++')}",
    )
    checked = run(emulator, "-L", "/usr/aarch64-linux-gnu", program, "--rounds", "2")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "neon: right" in checked.stdout


def test_no_instruction_set_leaks_a_symbol_that_another_could_link(plain: Path) -> None:
    # A weak symbol compiled with AVX-512 may be what a CPU without it is given.
    objects = sorted(plain.parent.glob("CMakeFiles/kernels_*.dir/*.o"))
    assert objects
    symbols = run(require("nm"), "-C", *objects).stdout.splitlines()
    weak = [line for line in symbols if line[17:18] in {"W", "V", "u", "w", "v"}]
    assert weak == []
