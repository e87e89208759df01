"""The runtime under the operators: ISA levels, threads, fork, allocator, generator."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import fastnn
import fastnn.nn.functional as F


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_every_level_is_compiled_and_the_lowest_always_available():
    compiled, available = (
        fastnn.backends.cpu.compiled_isas(),
        fastnn.backends.cpu.available_isas(),
    )
    assert compiled[0] == available[0] == "portable"
    assert set(available) <= set(compiled)


@pytest.mark.skipif(sys.platform != "linux", reason="another OpenMP runtime")
def test_threads_spin_for_microseconds_unless_the_user_chose_otherwise(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    code = "import os, fastnn; assert 'GOMP_SPINCOUNT' not in os.environ"
    shown = run_python(code, OMP_DISPLAY_ENV="verbose")
    assert shown.returncode == 0
    if "GOMP_" not in shown.stderr:
        pytest.skip("not GNU's OpenMP runtime")
    assert "GOMP_SPINCOUNT = '2000'" in shown.stderr
    asked = run_python(code.replace("assert", "#"), OMP_DISPLAY_ENV="verbose", GOMP_SPINCOUNT="7")
    assert "GOMP_SPINCOUNT = '7'" in asked.stderr


def test_outputs_whose_memory_left_the_caches_are_written_around_them():
    def streamed(elements_between):
        x = fastnn.ones(1 << 20)
        y = F.relu(x)
        del y
        fastnn.zeros(elements_between)
        before = fastnn.memory_stats()["streamed"]
        y = F.relu(x)
        assert y.sum().item() == 1 << 20
        return fastnn.memory_stats()["streamed"] - before

    fastnn.empty_cache()
    assert streamed(1 << 10) == 0
    assert streamed(12 << 20) == 1


def test_environment_lowers_the_isa_level():
    code = "import fastnn; print(fastnn.backends.cpu.active_isa())"
    assert run_python(code, FASTNN_ISA="portable").stdout.strip() == "portable"


def test_an_unknown_isa_level_is_refused_clearly():
    with pytest.raises(ValueError, match=r"set_isa: expected one of .*portable.*, got 'sse9'"):
        fastnn.backends.cpu.set_isa("sse9")
    result = run_python("import fastnn; fastnn.backends.cpu.active_isa()", FASTNN_ISA="sse9")
    assert result.returncode != 0
    assert "FASTNN_ISA: expected one of this machine's ISA levels" in result.stderr


@pytest.mark.parametrize("count", [0, -1, 5000])
def test_absurd_thread_counts_are_refused(count):
    with pytest.raises(ValueError, match="set_num_threads: expected 1 to 4096"):
        fastnn.set_num_threads(count)


@pytest.mark.parametrize("count", [1.5, "2", None])
def test_thread_counts_are_integers(count):
    with pytest.raises(TypeError, match="set_num_threads: expected an int, got"):
        fastnn.set_num_threads(count)


def test_threads_can_be_set_and_read():
    fastnn.set_num_threads(3)
    assert fastnn.get_num_threads() == 3


def test_many_python_threads_call_kernels_at_once():
    x = fastnn.randn(64, 33, 9, 9)
    expected = F.relu(x).numpy().tobytes()
    wrong = []

    def work() -> None:
        for _ in range(20):
            if F.relu(x).numpy().tobytes() != expected:
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes_after_the_parent_used_threads():
    code = """
import os, warnings
import fastnn
warnings.simplefilter("ignore")
fastnn.set_num_threads(4)
x = fastnn.randn(256, 64, 8, 8)
expected = fastnn.nn.functional.relu(x).numpy().tobytes()
child = os.fork()
if child == 0:
    os._exit(0 if fastnn.nn.functional.relu(x).numpy().tobytes() == expected else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes_what_another_thread_was_computing():
    code = """
import os, signal, threading, warnings
import numpy as np
import fastnn
warnings.simplefilter("ignore")
call, started = fastnn._core.batch_norm_apply, threading.Event()
def slow(*args):
    if threading.current_thread() is not threading.main_thread():
        started.set()
        threading.Event().wait()
    return call(*args)
fastnn._core.batch_norm_apply = slow
y = fastnn.nn.functional.batch_norm(fastnn.randn(2, 3, 4, 4), training=True)
threading.Thread(target=np.asarray, args=(y,), daemon=True).start()
started.wait()
child = os.fork()
if child == 0:
    signal.alarm(20)
    os._exit(0 if np.asarray(y).any() else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
os._exit(0)
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_freed_blocks_are_reused():
    fastnn.empty(1000, 1000)
    hits = fastnn.memory_stats()["cache_hits"]
    fastnn.empty(1000, 1000)
    assert fastnn.memory_stats()["cache_hits"] == hits + 1


def test_empty_cache_returns_what_is_cached():
    fastnn.empty(1000, 1000)
    assert fastnn.memory_stats()["cached"] >= 4_000_000
    fastnn.empty_cache()
    assert fastnn.memory_stats()["cached"] == 0


def test_memory_statistics_count_what_is_alive():
    before = fastnn.memory_stats()["allocated"]
    held = fastnn.empty(1 << 20)
    stats = fastnn.memory_stats()
    assert stats["allocated"] - before >= held.numel() * 4
    assert stats["peak_allocated"] >= stats["allocated"]
    del held
    assert fastnn.memory_stats()["allocated"] == before


def test_blocks_are_aligned():
    for shape in [(1,), (3, 5), (100, 100), (1 << 20,)]:
        assert fastnn.empty(*shape).data_ptr() % 64 == 0


@pytest.mark.parametrize(
    "sizes", [(10**13,), (2**40, 2**40), (2**62, 2), (2**63 - 1,), (2**80,), (10**9, 10**9, 0, 5)]
)
def test_absurd_sizes_are_a_memory_error_and_the_process_lives_on(sizes):
    if 0 in sizes:
        assert fastnn.empty(*sizes).numel() == 0
    else:
        with pytest.raises(MemoryError, match="cannot allocate"):
            fastnn.empty(*sizes)
    assert fastnn.zeros(3).tolist() == [0, 0, 0]


def test_memory_that_runs_out_in_a_thread_of_a_kernel_is_a_memory_error():
    """Each thread packs its matrices: with more and more memory, the result, then that, then all."""
    pytest.importorskip("resource")
    code = """
import re, resource
import fastnn
fastnn.set_num_threads(2)
a, b = fastnn.ones(8, 512, 1024), fastnn.ones(8, 1024, 512)
(a[:, :2] @ b[:, :, :2]).sum()  # threads are there
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
_, hard = resource.getrlimit(resource.RLIMIT_AS)
asked = set()
for quarters in range(256):
    resource.setrlimit(resource.RLIMIT_AS, (used + (quarters << 18), hard))
    try:
        out = a @ b
        break
    except MemoryError as error:
        asked.add(int(re.search(r"cannot allocate (\\d+) bytes", str(error))[1]))
assert out[7, 511, 511].item() == 1024
assert min(asked) < max(asked) == 8 * 512 * 512 * 4, asked
"""
    run = run_python(code)
    assert run.returncode == 0, run.stderr


def test_negative_and_fractional_sizes_are_refused():
    with pytest.raises(ValueError, match=r"zeros: expected sizes >= 0, got shape \(2, -1\)"):
        fastnn.zeros(2, -1)
    with pytest.raises(TypeError, match="ones: expected integer sizes"):
        fastnn.ones(2.5)


@pytest.mark.parametrize(
    "shape", [(5,), (3, 4), (2, 3, 5, 7), (2, 33, 1, 1), (1, 3, 64, 65), (2, 3, 4, 5, 6), ()]
)
@pytest.mark.parametrize("source", ["float32", "bfloat16", "int64", "int32", "uint8", "bool"])
@pytest.mark.parametrize("target", ["float32", "bfloat16", "int64", "int32", "uint8", "bool"])
def test_conversion_between_all_dtypes_and_layouts(shape, source, target, isa):
    rng = np.random.default_rng(0)
    plain = np.asarray(rng.integers(0, 2 if source == "bool" else 200, shape))
    values = plain.astype(fastnn.dtypes.as_dtype(source).numpy())
    for view in (values, values.T, values[::-1] if shape else values):
        got = np.asarray(fastnn.from_numpy(view).to(target).clone())
        assert np.array_equal(got, view.astype(fastnn.dtypes.as_dtype(target).numpy()))


def test_asking_for_cuda_gives_one_clear_error():
    code = "import fastnn; fastnn.cuda.is_available() or fastnn.ones(3).to('cuda')"
    done = run_python(code, FASTNN_CUDA_EMULATE="0")
    assert done.returncode == 0 or "RuntimeError: device 'cuda' is not available: " in done.stderr
    with pytest.raises(ValueError, match="expected 'cpu' or 'cuda', got 'cpu9'"):
        fastnn.ones(3).to(device="cpu9")


def test_import_is_light():
    """Importing pulls in NumPy and nothing else that is heavy, nor a CUDA module; CPU work neither."""
    code = """
import sys, fastnn
(fastnn.ones(3) + 1).sum().item()
heavy = {"torch", "matplotlib", "sklearn", "PIL", "tqdm", "safetensors", "ml_dtypes", "scipy",
         "fastnn._cuda", "fastnn._cuda_emulated"}
print(sorted(heavy & set(sys.modules)))
"""
    for emulate in ("0", "1"):
        assert run_python(code, FASTNN_CUDA_EMULATE=emulate).stdout.strip() == "[]"
