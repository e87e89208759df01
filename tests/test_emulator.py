"""The emulator of CUDA finds what it is there to find: planted mistakes, under sanitizers. The device's
primitives do on it, and on a GPU where there is one, what NumPy says."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fastnn

ROOT = Path(__file__).parent.parent
SOURCES = [
    f"csrc/cuda/{stem}.cu"
    for stem in ("runtime", "capture", "constants", "pinned", "self_check", "tensor_map")
]
EMULATOR = [f"csrc/cuda/emulator/{stem}.cpp" for stem in ("fibers", "memory", "runtime")]


def compiled(program, source, options=()):
    """A program of tests/emulator for the emulated GPU."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None or not (ROOT / "csrc").exists():
        pytest.skip("no C++ compiler")
    command = [
        compiler, "-std=gnu++17", "-O1", "-g", *options, "-Icsrc", "-DFASTNN_CUDA_EMULATE=1",
        "-x", "c++", f"tests/emulator/{source}", *SOURCES, *EMULATOR, "-o", str(program),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return program


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """tests/emulator/planted.cu as a program with AddressSanitizer and UndefinedBehaviorSanitizer."""
    program = compiled(
        tmp_path_factory.mktemp("emulator") / "planted", "planted.cu",
        ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    )  # fmt: skip

    def run(name):
        environment = {
            **os.environ, "ASAN_OPTIONS": "detect_leaks=0", "FASTNN_EMULATED_DEVICES": "2",
        }  # fmt: skip
        return subprocess.run(
            [program, name], capture_output=True, text=True, timeout=60, env=environment
        )

    return run


@pytest.mark.parametrize(
    "name",
    ["reverse", "reverse-on-the-default-stream", "reverse-a-table-while-another-records", "copy",
     "sums", "wgmma"],
)  # fmt: skip
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
        ("read-after-free", "heap-use-after-free"),
        ("write-past-shared", "out of bounds|heap-buffer-overflow"),
        ("early-exit", "barrier"),
        ("uneven-barriers", "barrier"),
        ("lone-shuffle", "warp collective that not all 32 lanes reach|ended"),
        ("product-without-waiting", "wrong result at 0: -?nan"),
        ("box-without-waiting", r"wrong result at \d+: -?nan"),
        ("tile-reused-too-early", "wrong result at 0: -?nan"),
        ("wait-for-too-many-bytes", "a wait for a barrier's phase that does not complete"),
        ("too-many-threads", "invalid launch configuration"),
        ("graph-in-a-recording", "a graph: operation not permitted when stream is capturing"),
        ("graph-on-two-streams", "second launch: a graph is launched while another stream may be"),
        ("stream-of-another-device", "a kernel could not be run: invalid resource handle"),
        ("event-of-another-device", "an event: invalid resource handle"),
        ("copy-between-pools", "a copy: invalid argument"),
        ("streams-without-order", "wrong result at 0: -?nan"),
    ],
)
def test_planted_mistakes_are_found(planted, name, message):
    done = planted(name)
    assert done.returncode != 0, f"{name}: not found"
    assert re.search(message, done.stderr), done.stderr[-2000:]


def test_memory_that_runs_out_while_another_library_records_is_said_to(planted):
    done = planted("allocate-while-another-records")
    assert done.returncode == 2
    assert re.match(r"cannot allocate \d+ bytes on cuda:0: .* are free", done.stderr), done.stderr


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """tests/emulator/planted.cu without AddressSanitizer, whose blocks are the heap's."""
    return compiled(tmp_path_factory.mktemp("emulator") / "planted", "planted.cu")


@pytest.mark.parametrize("name", ["host-reads-the-device", "read-after-free"])
def test_what_nobody_may_touch_ends_the_program(plain, name):
    assert subprocess.run([plain, "reverse"], timeout=60).returncode == 0
    done = subprocess.run([plain, name], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGSEGV and not done.stdout


def test_addresses_that_cannot_be_had_are_said_to(plain):
    limits = pytest.importorskip("resource")
    done = subprocess.run(
        [plain, "reverse"], capture_output=True, text=True, timeout=60,
        preexec_fn=lambda: limits.setrlimit(limits.RLIMIT_AS, (1 << 40, 1 << 40)),
    )  # fmt: skip
    assert done.returncode == -signal.SIGABRT
    assert re.search(r"cannot map \d+ bytes of addresses: .*ulimit -v", done.stderr), done.stderr


def test_after_a_failed_kernel_every_call_says_so(planted):
    done = planted("after-a-failed-kernel")
    assert done.returncode == 4, done.stderr
    calls = ("wait", "launch", "allocate", "copy", "wait for all")
    for call, line in zip(calls, done.stderr.splitlines(), strict=True):
        assert line.startswith(f"{call} 1: CUDA: "), line
        assert re.search("barrier .* this process can use the GPU no more: start", line), line


EVERY_CASE = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("fastnn._cuda_emulated", sys.argv[1])
module = importlib.util.module_from_spec(spec)
import fastnn
spec.loader.exec_module(module)
sys.modules["fastnn._cuda_emulated"] = module
from fastnn import _core, verify

# Every operand one element further on: aligned to its item, not to 16 bytes.
aligned = verify._to_tensor

def shifted(*arguments):
    t = aligned(*arguments)
    if isinstance(t, fastnn.Tensor) and t.dtype.is_floating_point:
        memory = _core.new_empty(t._array, [t.numel() + 1], t.dtype.name)
        view = memory.as_strided(t.shape, t._array.strides, 1)
        _core.copy_into(view, t._array)
        t._array = view
    return t

if sys.argv[2] == "shifted":
    verify._to_tensor = shifted
results = [verify.run_case(name, line, op, "cuda") for name, op, line in verify.all_cases()]
wrong = [result.explain() for result in results if not result.ok]
print("cases", len(results), *wrong, sep="\\n")
sys.exit(bool(wrong))
"""


@pytest.mark.slow
def test_no_kernel_leaves_its_memory(tmp_path):
    """Every operator's cases on the emulated GPU, its module built with AddressSanitizer and
    UndefinedBehaviorSanitizer: device and shared memory are blocks of exactly their size."""
    pybind11 = pytest.importorskip("pybind11")
    runtime = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True)
    if shutil.which("g++") is None or not Path(runtime.stdout.strip()).is_absolute():
        pytest.skip("no g++ with AddressSanitizer")
    flags = ["-std=gnu++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden",
             "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined",
             "-DFASTNN_CUDA_EMULATE=1", "-DFASTNN_CUDA_MODULE=_cuda_emulated", "-Icsrc",
             f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]  # fmt: skip
    sources = [*(ROOT / "csrc/cuda").glob("*.c*"), *(ROOT / "csrc/cuda/emulator").glob("*.cpp")]

    def compile_one(source):
        target = tmp_path / f"{source.parent.name}-{source.stem}.o"
        command = ["g++", *flags, "-x", "c++", "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    module = tmp_path / "_cuda_emulated.so"
    link = ["g++", "-shared", "-fsanitize=address,undefined", "-o", str(module), *objects]
    subprocess.run(link, check=True, timeout=300)
    environment = {
        **os.environ, "FASTNN_CUDA_EMULATE": "1", "ASAN_OPTIONS": "detect_leaks=0",
        "LD_PRELOAD": runtime.stdout.strip(),
    }  # fmt: skip

    def run(operands):
        command = [sys.executable, "-c", EVERY_CASE, str(module), operands]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=1800, env=environment
        )

    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(run, ["aligned", "shifted"]):
            assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
            assert done.stdout.startswith("cases")


def nvcc():
    """The CUDA compiler, where the build looks for it or where toolkits are put."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    folders = [f"{home}/bin" for home in homes if home]
    folders += [os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]
    return shutil.which("nvcc", path=os.pathsep.join(folders))


def sample(i):
    """As in csrc/cuda/self_check.cu."""
    return (((i * 1103515245 + 12345) % 2**32 >> 16) % 255 - 127) / 16.0


def primitives_by_numpy():
    a, b = sample(np.arange(256)).reshape(16, 16), sample(1000 + np.arange(128)).reshape(8, 16)
    lane, register = np.divmod(np.arange(256), 8)
    i, half = register // 2, register % 2
    fragments = a[lane // 4 + 8 * (i % 2), 2 * (lane % 4) + 8 * (i // 2) + half]
    a8, b8 = sample(np.arange(128)).reshape(16, 8), sample(1000 + np.arange(64)).reshape(8, 8)
    x = sample(np.arange(384)).reshape(3, 32, 4)
    x[:, 3::4] = 0
    threads = sample(np.arange(256))
    i = np.arange(128)
    between = 1 + i * 129 % 8192 / 8192
    first, second = 1 + np.arange(32) / 512, -2 - np.arange(32) / 256
    rounded = [np.round(first * 128) / 128, np.round(second * 64) / 64, first, second]
    rounded = np.transpose([*rounded, first, second])
    rounded[1::2] = np.roll(rounded[1::2], 2, axis=1)
    values = sample(np.arange(1 << 15))
    box = np.zeros((8, 64))
    box[:4, :56] = values[: 5 * 4 * 72].reshape(5, 4, 72)[1:, 2, 16:]
    # Base pixels of 3 images of 5 x 6: rows from -2 to 3, columns from -1 to 3 in steps of 2.
    image = np.pad(values[: 3 * 5 * 6 * 72].reshape(3, 5, 6, 72), ((0, 1), (2, 2), (1, 4), (0, 8)))
    bases = [(n, h, w) for n in range(4) for h in range(6) for w in (0, 2, 4)]
    pixels = [image[n, h + 1, w + 2, 16:80] for n, h, w in bases[2:66]]
    wide_a, wide_b = values[:4096].reshape(64, 64), values[4096:12288].reshape(128, 64)
    fine_a = (1 + np.arange(2048) ** 2 * 37 % 8191 / 8192).reshape(64, 32)
    fine_a = np.rint(fine_a * 1024) / 1024  # the accelerator's ties go to even
    fine_b = values[2048:6144].reshape(128, 32)
    return {
        "mma_bf16": 2 * a @ b.T,
        "mma_bf16_transposed": 2 * a @ b.T,
        "mma_tf32": 2 * a8 @ b8.T,
        "ldmatrix": fragments,
        "ldmatrix_transposed": fragments,
        "to_tf32": np.where(i % 2, -1, 1) * np.floor(between * 1024 + 0.5) / 1024,
        "round_two": rounded,
        "copy_async": x,
        "sums": [np.full(256, threads.sum()), np.repeat(threads.reshape(8, 32).sum(1), 32),
                 np.full(256, threads.max())],
        "load_box_and_pixels": np.concatenate([box, pixels]),
        "wgmma_64": wide_a @ wide_b[:64].T,
        "wgmma_128": wide_a @ wide_b.T,
        "wgmma_64_turned": wide_a.T @ wide_b.reshape(64, 128)[:, :64],
        "wgmma_128_turned": wide_a.T @ wide_b.reshape(64, 128),
        "wgmma_tf32_64": fine_a @ fine_b[:64].T,
        "wgmma_tf32_128": fine_a @ fine_b.T,
    }  # fmt: skip


@pytest.mark.parametrize("where", ["emulated", "gpu"])
def test_device_primitives_do_what_numpy_says(tmp_path, where):
    """Exact: the operands are few bits, so every sum is a whole number of sixteenths squared. No matrix
    has two rows or columns alike, so that none can stand for another."""
    if where == "emulated":
        program = compiled(tmp_path / "primitives", "primitives.cu")
    else:
        if nvcc() is None or fastnn.device.cuda_is_emulated():
            pytest.skip("no GPU, or no nvcc")
        major, minor = fastnn.cuda.get_device_capability()
        program = tmp_path / "primitives"
        target = f"{major}{minor}{'a' if major == 9 else ''}"
        command = [
            nvcc(), "-std=c++17", f"-gencode=arch=compute_{target},code=sm_{target}",
            "--expt-relaxed-constexpr", "-Icsrc", "tests/emulator/primitives.cu", *SOURCES,
            "-o", str(program),
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    code, printed = output_of(program, Path(os.environ.get("OUT", tmp_path)) / "primitives.txt")
    found = {line.split()[0]: line.split()[1:] for line in printed.splitlines()}
    expected = primitives_by_numpy()
    for name, values in expected.items():
        if name.startswith(("mma_", "wgmma_")):
            for lines in (values, values.T):
                assert len(np.unique(lines, axis=0)) == len(lines), name
    if where == "gpu" and (major, minor) != (9, 0):
        expected = {k: v for k, v in expected.items() if not k.startswith(("load_", "wgmma_"))}
    if where == "gpu" and (major, minor) < (8, 0):
        expected = {
            k: v for k, v in expected.items() if not k.startswith(("ldmatrix", "mma_", "to_"))
        }
    wrong = [text for name in expected if (text := mismatch(name, found.get(name), expected[name]))]
    assert not wrong, "\n".join(wrong)
    assert found.keys() == expected.keys()
    assert code == 0


def output_of(program, kept):
    """The exit code (none where it hung), and the lines that were printed whole, which a file keeps."""
    with kept.open("w") as file:
        try:
            code = subprocess.run([program], stdout=file, timeout=60).returncode
        except subprocess.TimeoutExpired:
            code = None
    return code, kept.read_text().rpartition("\n")[0]


def mismatch(name, found, expected):
    """Where a primitive's values are not the expected ones, the first of them; or nothing."""
    if found is None:
        return f"{name}: was not printed"
    got, want = np.array(found, np.float32), np.ravel(expected).astype(np.float32)
    if got.shape != want.shape:
        return f"{name}: {got.size} values, expected {want.size}"
    at = np.flatnonzero(got != want)
    first = ", ".join(f"[{i}] {got[i]:g}, expected {want[i]:g}" for i in at[:8])
    return f"{name}: {at.size} of {want.size} differ: {first}" if at.size else ""


def test_all_mismatches_of_primitives_are_told(tmp_path):
    assert mismatch("a", ["1", "2"], [[1], [2]]) == ""
    assert mismatch("a", ["1", "nan"], [1, 2]) == "a: 1 of 2 differ: [1] nan, expected 2"
    assert mismatch("a", ["1"] * 20, np.zeros(20)).count("expected 0") == 8
    assert mismatch("a", ["1"], [1, 2]) == "a: 1 values, expected 2"
    assert mismatch("a", None, [1]) == "a: was not printed"
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho a 1 2\nprintf 'b 1 '\nexit 3\n")
    program.chmod(0o755)
    assert output_of(program, tmp_path / "kept") == (3, "a 1 2")


def test_loads_of_tiles_meet_no_bank_twice(tmp_path):
    program = compiled(tmp_path / "banks", "banks.cu")
    done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    ways = dict(line.split() for line in done.stdout.splitlines())
    assert len(ways) == 20 and set(ways.values()) == {"1"}, ways


#: The body that a wrong instruction would have: what to replace in device/ptx.h, which of its
#: occurrences, by what, and the primitives that then are found to be wrong.
WRONG = {
    "matrices": ("[8 * i + g][2 * t]", 0, "[8 * (i ^ 1) + g][2 * t]", "mma_bf16, ldmatrix"),
    "rows": ("rows[8 * i + 2 * t][g]", 0, "rows[8 * i + t][g]",
             "mma_bf16_transposed, ldmatrix_transposed"),
    "halves": ("low | static_cast<uint32_t>(high)", 0, "high | static_cast<uint32_t>(low)",
               "ldmatrix, ldmatrix_transposed"),
    "a-bf16": (".a[row + 2 * half]", 0, ".a[2 * row + half]", "mma_bf16, mma_bf16_transposed"),
    "d-bf16": ("row = i / 2, column = 2 * t + i % 2", 0, "row = i % 2, column = 2 * t + i / 2",
               "mma_bf16, mma_bf16_transposed"),
    "b-tf32": (".b[k / 4]", 0, ".b[1 - k / 4]", "mma_tf32"),
    "d-tf32": ("row = i / 2, column = 2 * t + i % 2", 1, "row = i / 2, column = t + i % 2 * 4",
               "mma_tf32"),
    "replacing": ("d[i] += half_of", 0, "d[i] = (k ? d[i] : 0) + half_of",
                  "mma_bf16, mma_bf16_transposed"),
    "ties": ("bits + 0x1000u", 0, "bits + 0x0fffu + (bits >> 13 & 1)", "to_tf32"),
    "truncated": ("bits + 0x1000u", 0, "bits", "to_tf32"),
}  # fmt: skip
#: The same of what every kernel needs: then the device is refused.
WRONG_BASICS = {
    "no-zeros": ("valid ? 16 : 0", 1, "16", "copy_async"),
    "early": ("async_wait(kLeft)", 0, "async_wait(2 * kLeft)", "copy_async"),
    "swapped": ("to_bfloat16(first).bits | static_cast<uint32_t>(to_bfloat16(second).bits)", 1,
                "to_bfloat16(second).bits | static_cast<uint32_t>(to_bfloat16(first).bits)",
                "round_two"),
}  # fmt: skip


def altered(folder, old, which, new):
    """The compiler's option for a device/ptx.h that is wrong in one place, or as it is."""
    header = folder / "altered/cuda/device/ptx.h"
    header.parent.mkdir(parents=True, exist_ok=True)
    text = (ROOT / "csrc/cuda/device/ptx.h").read_text()
    if old is not None:
        parts = text.split(old)
        assert len(parts) > which + 1, f"device/ptx.h has no longer {old!r}"
        text = old.join(parts[: which + 1]) + new + old.join(parts[which + 1 :])
    header.write_text(text)
    return f"-I{folder}/altered"


@pytest.fixture(scope="module")
def self_check(tmp_path_factory):
    """What a device finds in itself: exit code and text, its ptx.h altered as WRONG says."""
    folder = tmp_path_factory.mktemp("self_check")
    own = "csrc/cuda/self_check.cu"
    rest = [s for s in SOURCES if s != own] + EMULATOR + ["tests/emulator/self_check.cu"]

    def compile_one(source, *include):
        target = folder / f"{Path(source).parent.name}-{Path(source).stem}.o"
        command = [os.environ.get("CXX", "g++"), "-std=gnu++17", *include, "-Icsrc",
                   "-DFASTNN_CUDA_EMULATE=1", "-x", "c++", "-c", source, "-o", str(target)]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return str(target)

    if shutil.which(os.environ.get("CXX", "g++")) is None or not (ROOT / "csrc").exists():
        pytest.skip("no C++ compiler")
    objects = [compile_one(source) for source in rest]

    def run(old=None, which=0, new=None, **environment):
        program = folder / "program"
        command = [os.environ.get("CXX", "g++"), "-o", str(program), *objects,
                   compile_one(own, altered(folder, old, which, new))]  # fmt: skip
        subprocess.run(command, check=True, timeout=300)
        done = subprocess.run(
            [program], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
        )
        return done.returncode, done.stdout.strip()

    return run


def test_a_device_passes_its_self_check(self_check):
    assert self_check() == (0, "tensor cores 1")
    assert self_check(FASTNN_TENSOR_CORES="0") == (0, "tensor cores 0")
    assert self_check(FASTNN_EMULATED_CAPABILITY="75") == (0, "tensor cores 0")


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_instruction_keeps_the_tensor_cores_off(self_check, name):
    old, which, new, found = WRONG[name]
    assert self_check(old, which, new) == (0, f"tensor cores 0 {found}")


@pytest.mark.parametrize("name", WRONG_BASICS)
def test_a_device_without_what_every_kernel_needs_is_refused(self_check, name):
    old, which, new, found = WRONG_BASICS[name]
    code, said = self_check(old, which, new)
    assert code == 1 and f"what they are expected to: {found};" in said, said


def test_the_primitives_of_a_refused_device_are_told_all_the_same(tmp_path, capfd):
    option = altered(tmp_path, *WRONG_BASICS["swapped"][:3])
    program = compiled(tmp_path / "primitives", "primitives.cu", [option])
    code, printed = output_of(program, tmp_path / "kept")
    found = {line.split()[0]: line.split()[1:] for line in printed.splitlines()}
    expected = primitives_by_numpy()
    wrong = [name for name in found if mismatch(name, found[name], expected[name])]
    assert code == 1 and wrong == ["round_two"] and {"mma_bf16", "copy_async"} < found.keys()
    assert "what they are expected to: round_two;" in capfd.readouterr().err


def test_the_gpu_check_does_not_pass_where_there_is_no_gpu():
    """What benchmarks/gpu_check.sh calls."""
    name = "test_device_primitives_do_what_numpy_says[gpu]"
    hidden = {"FASTNN_CUDA_EMULATE": "0", "CUDA_VISIBLE_DEVICES": "-1"}
    for strict, code in ({}, 0), ({"FASTNN_NO_SKIP": "1"}, 1):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::{name}"],
            cwd=ROOT, capture_output=True, text=True, timeout=120,
            env={**os.environ, **hidden, **strict},
        )  # fmt: skip
        assert done.returncode == code and "no GPU, or no nvcc" in done.stdout, done.stdout
