"""How the modules are built: CUDA or why not (only configured here), and what the objects share."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OLD = """#!/bin/sh
echo 'Cuda compilation tools, release 11.8, V11.8.89'
"""
#: As a release that is new enough but has not heard of 90a.
IGNORANT = """#!/bin/sh
case "$*" in
  *--version*) echo 'Cuda compilation tools, release 12.0, V12.0.76' ;;
  *90a*) echo "nvcc fatal   : Unsupported gpu architecture 'compute_90a'" >&2; exit 1 ;;
esac
"""
BROKEN = """#!/bin/sh
echo 'nvcc error: no "host" compiler' >&2
exit 1
"""


@pytest.fixture(scope="module")
def configure(tmp_path_factory):
    """Configures the package with a stand-in for nvcc, None for none; exit code and all that was said."""
    if not (ROOT / "CMakeLists.txt").exists():
        pytest.skip("the package's source is not here")
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not here")
    pybind11 = pytest.importorskip("pybind11")
    folder = tmp_path_factory.mktemp("build")

    def run(option, nvcc, *more):
        stub = folder / "nvcc"
        if nvcc is not None:
            stub.write_text(nvcc)
            stub.chmod(0o755)
        done = subprocess.run(
            ["cmake", "-S", str(ROOT), "-B", str(folder / "tree"), f"-DFASTNN_CUDA={option}",
             f"-DFASTNN_NVCC={stub if nvcc is not None else ''}", f"-DPython_EXECUTABLE={sys.executable}",
             f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", *more],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    return run


@pytest.mark.parametrize(
    ("nvcc", "why"),
    [
        (None, "nvcc was not found (PATH, CUDA_HOME, or the nvidia-cuda-nvcc wheel)"),
        (OLD, "nvcc 11.8 is older than 12.0"),
        (BROKEN, "nvcc was found, but does not work: nvcc error: no 'host' compiler"),
        (IGNORANT, "nvcc was found, but does not work: nvcc fatal : Unsupported gpu architecture "
                   "'compute_90a'"),
    ],
    ids=["none", "old", "broken", "unknown-gpu"],
)  # fmt: skip
def test_without_a_compiler_that_can_auto_says_why_and_on_fails(configure, nvcc, why):
    code, said = configure("AUTO", nvcc)
    assert code == 0 and f"fastnn: CUDA not built: {why} " in said, said
    code, said = configure("ON", nvcc)
    assert code != 0 and f"FASTNN_CUDA=ON: {why} " in said, said


def test_off_does_not_look_for_a_compiler(configure):
    code, said = configure("OFF", BROKEN)
    assert code == 0 and "fastnn: CUDA not built: FASTNN_CUDA=OFF" in said, said


def test_options_that_mean_nothing_are_refused(configure):
    code, said = configure("MAYBE", None)
    assert code != 0 and "FASTNN_CUDA: expected AUTO, ON or OFF, got MAYBE" in said, said
    code, said = configure("AUTO", IGNORANT, "-DFASTNN_CUDA_ARCHITECTURES=80-real;hopper")
    assert code != 0 and "80-real;90a-real;80-virtual, got hopper" in said, said


def test_the_module_is_linked_to_no_cuda_library():
    """Neither the driver, which a machine may lack, nor the runtime, cuDNN or cuBLAS."""
    spec = find_spec("fastnn._cuda")
    if spec is None or shutil.which("readelf") is None:
        pytest.skip("built without CUDA, or no readelf")
    done = subprocess.run(
        ["readelf", "-d", spec.origin], capture_output=True, text=True, check=True
    )
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", done.stdout)
    assert "libc.so.6" in needed
    assert not [name for name in needed if re.match(r"lib(cu|nv)", name)], needed


def test_what_is_compiled_for_a_level_runs_on_no_machine_without_it():
    """Two ways to an illegal instruction on a machine that lacks a level, though its kernels are never
    called: code that runs when the module is loaded, and a function of a header, of which the linker
    keeps any level's copy for all."""
    if not os.environ.get("FASTNN_BUILD_DIR") or shutil.which("nm") is None:
        pytest.skip(
            "FASTNN_BUILD_DIR (the -Cbuild-dir of the installed package) is not set, or no nm"
        )
    folders = sorted(Path(os.environ["FASTNN_BUILD_DIR"]).glob("CMakeFiles/cpu_*.dir"))
    assert folders
    for folder in folders:
        level = folder.name.removeprefix("cpu_").removesuffix(".dir")
        objects = sorted(folder.rglob("*.o"))
        assert objects
        listed = subprocess.run(["nm", "-C", *objects], capture_output=True, text=True, check=True)
        symbols = re.findall(r"^[0-9a-f ]{16} (\w) (.+)$", listed.stdout, re.MULTILINE)
        assert any(kind == "T" for kind, _ in symbols)
        at_load = [name for _, name in symbols if name.startswith("_GLOBAL__sub_I")]
        assert not at_load, (level, at_load)
        own = f"fastnn::cpu::{level}::"
        shared = {name for kind, name in symbols if kind in "WVu" and own not in name}
        assert shared <= {"DW.ref.__gxx_personality_v0"}, (level, shared)
