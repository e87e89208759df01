"""The emulator of CUDA finds what it is there to find: planted mistakes, under sanitizers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [
    "csrc/cuda/runtime.cu",
    "csrc/cuda/emulator/fibers.cpp",
    "csrc/cuda/emulator/runtime.cpp",
]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """tests/emulator/planted.cu as a program with AddressSanitizer and UndefinedBehaviorSanitizer."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None or not (ROOT / "csrc").exists():
        pytest.skip("no C++ compiler")
    program = tmp_path_factory.mktemp("emulator") / "planted"
    command = [
        compiler, "-std=gnu++17", "-O1", "-g", "-fsanitize=address,undefined", "-Icsrc",
        "-fno-sanitize-recover=undefined", "-DFASTNN_CUDA_EMULATE=1", "-x", "c++",
        "tests/emulator/planted.cu", *SOURCES, "-o", str(program),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]

    def run(name):
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
        return subprocess.run(
            [program, name], capture_output=True, text=True, timeout=60, env=environment
        )

    return run


@pytest.mark.parametrize("name", ["reverse", "copy", "sums"])
def test_correct_kernels_pass(planted, name):
    done = planted(name)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reverse-without-barrier", "wrong result"),
        ("sums-without-barrier", "wrong result"),
        ("copy-without-waiting", "wrong result at 0: -?nan"),
        ("read-past-the-end", "heap-buffer-overflow"),
        ("write-past-shared", "out of bounds|heap-buffer-overflow"),
        ("early-exit", "barrier"),
        ("uneven-barriers", "barrier"),
        ("lone-shuffle", "warp collective that not all 32 lanes reach|ended"),
        ("too-many-threads", "invalid launch configuration"),
    ],
)
def test_planted_mistakes_are_found(planted, name, message):
    done = planted(name)
    assert done.returncode != 0, f"{name}: not found"
    assert re.search(message, done.stderr), done.stderr[-2000:]
