"""How the modules are built: CUDA or why not (only configured here), and what the objects share."""

from __future__ import annotations

import json
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


def cmake(folder, *options, **environment):
    """Configures the package in a folder; what the process said and its exit code."""
    if not (ROOT / "CMakeLists.txt").exists():
        pytest.skip("the package's source is not here")
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not here")
    pybind11 = pytest.importorskip("pybind11")
    return subprocess.run(
        ["cmake", "-S", str(ROOT), "-B", str(folder), f"-DPython_EXECUTABLE={sys.executable}",
         f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", *options],
        capture_output=True, text=True, timeout=600, env={**os.environ, **environment},
    )  # fmt: skip


def stand_in(folder, nvcc):
    path = folder / "nvcc"
    path.write_text(nvcc)
    path.chmod(0o755)
    return str(path)


def test_the_compiler_of_cudacxx_is_taken(tmp_path):
    """CMake's own variable: a path, not a folder. Before any other that is there."""
    done = cmake(tmp_path / "tree", "-DFASTNN_CUDA=AUTO", CUDACXX=stand_in(tmp_path, OLD))
    assert "CUDA not built: nvcc 11.8 is older than 12.0" in done.stdout, done.stdout + done.stderr


@pytest.fixture(scope="module")
def configure(tmp_path_factory):
    """Configures the package with a stand-in for nvcc, None for none; exit code and all that was said."""
    folder = tmp_path_factory.mktemp("build")

    def run(option, nvcc, *more):
        compiler = stand_in(folder, nvcc) if nvcc is not None else ""
        done = cmake(folder / "tree", f"-DFASTNN_CUDA={option}", f"-DFASTNN_NVCC={compiler}", *more)
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


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not here")
def test_kernels_are_compiled_for_the_gpus_that_are_listed(tmp_path):
    """By options of our own: CMake 3.23 and 3.24 refuse 90a in a list of theirs."""
    done = cmake(tmp_path, "-DFASTNN_CUDA=ON", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON")
    assert done.returncode == 0, done.stdout + done.stderr
    commands = json.loads((tmp_path / "compile_commands.json").read_text())
    kernels = [c["command"] for c in commands if c["file"].endswith(".cu")]
    assert len(kernels) > 20
    for command in kernels:
        targets = re.findall(r"-arch\S*|(?<=-gencode.)\S+", command)
        assert targets == [
            "arch=compute_80,code=sm_80", "arch=compute_90a,code=sm_90a",
            "arch=compute_80,code=compute_80",
        ], command  # fmt: skip


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


@pytest.fixture
def objects():
    """The object files of each instruction set level."""
    if not os.environ.get("FASTNN_BUILD_DIR"):
        pytest.skip("FASTNN_BUILD_DIR (the -Cbuild-dir of the installed package) is not set")
    folders = Path(os.environ["FASTNN_BUILD_DIR"]).glob("CMakeFiles/cpu_*.dir")
    found = {
        f.name.removeprefix("cpu_").removesuffix(".dir"): sorted(f.rglob("*.o")) for f in folders
    }
    assert found and all(found.values())
    return found


def binutils(tool, *arguments):
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not here")
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def test_what_is_compiled_for_a_level_runs_on_no_machine_without_it(objects):
    """Two ways to an illegal instruction on a machine that lacks a level, though its kernels are never
    called: code that runs when the module is loaded, and a function of a header, of which the linker
    keeps any level's copy for all."""
    for level, files in objects.items():
        symbols = re.findall(
            r"^[0-9a-f ]{16} (\w) (.+)$", binutils("nm", "-C", *files), re.MULTILINE
        )
        assert any(kind == "T" for kind, _ in symbols)
        at_load = [name for _, name in symbols if name.startswith("_GLOBAL__sub_I")]
        assert not at_load, (level, at_load)
        own = f"fastnn::cpu::{level}::"
        shared = {name for kind, name in symbols if kind in "WVu" and own not in name}
        assert shared <= {"DW.ref.__gxx_personality_v0"}, (level, shared)


def loops(code):
    """Innermost loops of disassembled code: the instructions from a backward jump's target to it."""
    lines = [
        (int(at, 16), what)
        for at, what in re.findall(r"^ *([0-9a-f]+):\s+(.+)$", code, re.MULTILINE)
    ]
    index = {at: i for i, (at, _) in enumerate(lines)}
    jumps = {
        i: index.get(int(to[1], 16), i)
        for i, (_, what) in enumerate(lines)
        if (to := re.match(r"j\w+ +([0-9a-f]+) ", what))
    }
    for end, start in jumps.items():
        if start < end and not any(start <= i < end for i in jumps):
            yield [what for _, what in lines[start : end + 1]]


def test_products_keep_their_accumulators_in_registers(objects):
    """One that a compiler sends to memory and back in every turn of AVX2's loop takes a third of its
    speed, and no result shows it."""
    if "avx2" not in objects:
        pytest.skip("no AVX2 here")
    (matmul,) = [file for file in objects["avx2"] if file.name == "matmul.cpp.o"]
    code = binutils("objdump", "-d", "--no-show-raw-insn", matmul)
    products = [loop for loop in loops(code) if sum("vfmadd" in line for line in loop) >= 12]
    assert len(products) > 10
    for loop in products:
        stored = [line for line in loop if re.search(r"%[xy]mm\d+,-?(0x)?[0-9a-f]*\(%rsp\)", line)]
        assert not stored, "\n".join(loop)
