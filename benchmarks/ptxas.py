"""What the CUDA kernels take of a multiprocessor: registers, spills, stack, shared memory.

    python benchmarks/ptxas.py              compares with csrc/cuda/limits.json; exits with 1 if worse
    python benchmarks/ptxas.py --update     writes it

Needs nvcc, no GPU. A kernel may take no more than is recorded there: more registers mean fewer threads
at a time, and a spill means memory traffic in the inner loop. In the kernels named in HOT only the spills
of SPILLS pass.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMITS = ROOT / "csrc/cuda/limits.json"
ARCHITECTURES = ("sm_80", "sm_90a")
HOT = (
    "gather_kernel",
    "weight_kernel",
    "wgmma_kernel",
    "column_kernel",
    "walk_kernel",
    "layer_kernel",
    "layer_backward_kernel",
    "forward_rows_kernel",
    "backward_rows_kernel",
    "Span",
    "step_kernel",
    "DenseRow",
)
#: Bytes stored and loaded that hot kernels may spill. Of these two, which share rows of more than 2048
#: elements among a block, ptxas puts 8 bytes aside rather than take more registers. Launch bounds that
#: forbid it cost 48 registers instead of 32, and 64 instead of 48: fewer threads that wait for memory.
#: Which is faster has to be measured on a GPU of compute capability 8.0; for 9.0 nothing is spilled.
SPILLS = {
    ("sm_80", "softmax: forward_rows_kernel<float, 4, Team<256> >"): 16,
    ("sm_80", "norm_layer: layer_backward_kernel<float, 4, Team<256> >"): 16,
}
#: ptxas may use a few registers more from one release to the next.
SLACK = 8

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def _short(name: str) -> str:
    """A demangled kernel without what all have in common."""
    for noise in (
        "void ",
        "fastnn::cuda::",
        "fastnn::",
        "(anonymous namespace)::",
        "_NV_ANON_NAMESPACE::",
    ):
        name = name.replace(noise, "")
    name = re.sub(r"\([\w ]+\)(?=\d)", "", name)  # the types of template arguments
    return name.split("(", 1)[0].strip() if "(" in name else name


def ignored(said: str) -> str:
    """The remarks with which alone ptxas gives up what sm_90a's kernels rest on: the overlap of wgmma,
    where it cannot follow the registers, and setmaxnreg."""
    lost = ("serialized", "setmaxnreg")
    return "\n".join(line for line in said.splitlines() if any(word in line for word in lost))


def measure(source: Path, architecture: str) -> dict[str, dict[str, int]]:
    """Kernel name -> what ptxas says of it."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            ["nvcc", "-std=c++17", f"-arch={architecture}", "-cubin", "-o", f"{folder}/x.cubin",
             "-Xptxas", "-v", "-lineinfo", "--expt-relaxed-constexpr", "-Icsrc", str(source)],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
    if done.returncode or ignored(done.stderr):
        raise RuntimeError(f"{source.name}: {ignored(done.stderr) or done.stderr[-3000:]}")
    demangled = subprocess.run(
        ["c++filt"], input="\n".join(_ENTRY.findall(line)[0][0] for line in done.stderr.splitlines()
                                     if _ENTRY.search(line)),
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    found: dict[str, dict[str, int]] = {}
    names = iter(demangled)
    kernel: dict[str, int] = {}
    for line in done.stderr.splitlines():
        if _ENTRY.search(line):
            kernel = found.setdefault(f"{source.stem}: {_short(next(names))}", {})
        elif match := _SPILL.search(line):
            kernel["stack"] = int(match[1])
            kernel["spilled"] = int(match[2]) + int(match[3])
        elif match := _USED.search(line):
            kernel["registers"] = int(match[1])
            shared = _SHARED.search(line)
            kernel["shared"] = int(shared[1]) if shared else 0
    return found


def measure_all() -> dict[str, dict[str, dict[str, int]]]:
    """Architecture -> kernel -> figures, of every source in csrc/cuda."""
    sources = sorted((ROOT / "csrc/cuda").glob("*.cu"))
    tasks = [(source, arch) for arch in ARCHITECTURES for source in sources]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda task: measure(*task), tasks))
    out: dict[str, dict[str, dict[str, int]]] = {arch: {} for arch in ARCHITECTURES}
    for (_, arch), result in zip(tasks, results, strict=True):
        out[arch].update(result)
    return out


def complaints(measured: dict, limits: dict) -> list[str]:
    """What is worse than recorded, or not recorded."""
    out = []
    for arch, kernels in measured.items():
        recorded = limits.get(arch, {})
        for name, now in kernels.items():
            if now["spilled"] > SPILLS.get((arch, name), 0) and any(hot in name for hot in HOT):
                out.append(f"{arch} {name}: {now['spilled']} bytes are spilled in a hot kernel")
            if name not in recorded:
                out.append(f"{arch} {name}: not in {LIMITS.name}; run benchmarks/ptxas.py --update")
                continue
            for what, value in now.items():
                limit = recorded[name][what] + (SLACK if what == "registers" else 0)
                if value > limit:
                    out.append(f"{arch} {name}: {what} {value}, recorded {recorded[name][what]}")
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help="record what is measured")
    update = parser.parse_args().update
    if shutil.which("nvcc") is None:
        sys.exit("nvcc was not found")
    measured = measure_all()
    if update:
        lines = []
        for arch, kernels in measured.items():
            rows = ",\n".join(
                f"    {json.dumps(name)}: {json.dumps(kernels[name])}" for name in sorted(kernels)
            )
            lines.append(f"  {json.dumps(arch)}: {{\n{rows}\n  }}")
        LIMITS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    worse = complaints(measured, json.loads(LIMITS.read_text()))
    print("\n".join(worse) or f"{sum(map(len, measured.values()))} kernels within their limits")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
