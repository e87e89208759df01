"""benchmarks/gpu_check.sh, with stand-ins for everything that needs a GPU: no stage passes unrun."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from fastnn.verify import FAMILIES

SCRIPT = Path(__file__).parent.parent / "benchmarks/gpu_check.sh"
pytestmark = pytest.mark.skipif(
    not SCRIPT.exists() or shutil.which("timeout") is None, reason="no script, or no timeout here"
)

#: What is called, by a part of its arguments, exits as the test says; what it was called with is kept.
STUB = """#!/usr/bin/env bash
echo "$(basename "$0") $*" | tr '\\n' ' ' >>"$CALLS"; echo >>"$CALLS"
case "$*" in
  *submodule_search_locations*) [ -d "$SITE/fastnn" ] && echo "$SITE/fastnn" || exit 1 ;;
  *compute_cap*) echo 9.0 ;;
  *query-gpu=name*) echo "NVIDIA H200" ;;
  *"pip install"*)
    echo "by $CMAKE_BUILD_PARALLEL_LEVEL" >>"$CALLS"
    mkdir -p "$SITE" && cp -r src/fastnn "$SITE" && echo binary >"$SITE/fastnn/_cuda.so" ;;
  *verify*) echo "$SAID" ;;
  *" --json "*) echo "{}" >"${!#}" ;;
esac
while IFS='|' read -r part code; do
  if [[ -n "$part" && "$*" == *"$part"* ]]; then [ "$code" = hang ] && sleep 60; exit "$code"; fi
done <<<"$CODES"
exit 0
"""
MARK = "gpu"  # so that this file does not look like one with such tests
CLEAN = "========= ERROR SUMMARY: 0 errors"


def families():
    """In the script's order, which are all that there are."""
    found = re.search(r"^families=\((.*)\)$", SCRIPT.read_text(), re.MULTILINE)[1].split()
    assert sorted(found) == sorted(FAMILIES)
    return found


@pytest.fixture
def check(tmp_path):
    """Runs stages; returns the exit code, each stage's result, all output and the calls."""
    tree, tools = tmp_path / "tree", tmp_path / "bin"
    for path, text in {
        "csrc/kernel.cu": "", "cmake/cuda.cmake": "", "CMakeLists.txt": "", "pyproject.toml": "",
        "src/fastnn/__init__.py": "", "tests/test_cuda_a.py": f"@pytest.mark.{MARK}",
        "tests/test_b.py": "check_everywhere", "tests/test_c.py": f"pytestmark = pytest.mark.{MARK}",
        "tests/test_d.py": f"@pytest.mark.{MARK}", "tests/test_cases.py": f"@pytest.mark.{MARK}",
        "tests/test_cuda_interop.py": f"@pytest.mark.{MARK}",
    }.items():  # fmt: skip
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    (tree / "benchmarks").mkdir()
    shutil.copy(SCRIPT, tree / "benchmarks")
    tools.mkdir()
    for name in ("python3", "nvidia-smi", "compute-sanitizer"):
        (tools / name).write_text(STUB)
        (tools / name).chmod(0o755)

    def run(*stages, codes=(), said=CLEAN, **environment):
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        settings = {
            "PATH": f"{tools}:{os.environ['PATH']}", "OUT": str(tmp_path / "out"),
            "CALLS": str(calls), "CODES": "\n".join(codes), "SAID": said,
            "SITE": str(tmp_path / "site"),
        }  # fmt: skip
        done = subprocess.run(
            ["bash", str(tree / "benchmarks/gpu_check.sh"), *stages], capture_output=True, text=True,
            timeout=100, env={**os.environ, **settings, **environment},
        )  # fmt: skip
        table = done.stdout.partition(f"{'stage':<26} result")[2].splitlines()[1:]
        results = dict(re.fullmatch(r"(\S+) +(.*?) +\d+", line).groups() for line in table)
        output = done.stdout + done.stderr
        return done.returncode, results, output, calls.read_text() if calls.exists() else ""

    run.tree, run.tools, run.out, run.site = tree, tools, tmp_path / "out", tmp_path / "site"
    return run


def test_every_stage_runs_and_passes(check):
    code, results, output, calls = check()
    assert code == 0 and len(results) == 16 and set(results.values()) == {"passed"}, output
    ours = "python3 -m pytest -v -W default --maxfail=20 -o faulthandler_timeout=30"
    new, cases = "warpgroup or wgmma or tensor_memory", "tests/test_cases.py"
    interop, runtime = "tests/test_cuda_interop.py", "tests/test_cuda_a.py"
    rest = "tests/test_c.py tests/test_d.py"
    every = f"tests/test_c.py {cases} {runtime} {interop} tests/test_d.py"
    ran = [line.strip() for line in calls.splitlines() if "pytest -v" in line]
    assert ran == [
        *(f"{ours} -m gpu and {family} {cases}" for family in families()),
        f"{ours} -m gpu -k not ({new}) {runtime}",
        f"{ours} -m gpu -k not cupy {interop}", f"{ours} -m gpu -k cupy {interop}",
        f"{ours} -m gpu -k not ({new}) {rest}", f"{ours} -m gpu -k {new} {every}",
        f"{ours} -m gpu {cases}", f"{ours} -m gpu -k not ({new}) {rest}",
        f"{ours} -m gpu -k {new} {every}", f"{ours} -m hypothesis tests/test_b.py",
    ]  # fmt: skip
    assert "fastnn bench conv --batch 64 --filter n64 --dtype tf32 --device cuda" in calls
    networks = re.findall(r"fastnn bench train infer (.*?) --device.*/(.*)\.json", calls)
    assert networks == [
        ("--dtype bfloat16", "h200-networks-bfloat16"), ("--dtype tf32", "h200-networks-tf32"),
        ("--compile --dtype bfloat16", "h200-networks-compiled-bfloat16"),
        ("--compile --dtype tf32", "h200-networks-compiled-tf32"),
    ]  # fmt: skip
    assert output.count("racecheck sum: clean") == 1
    assert calls.count("--report-api-errors no") == calls.count("--tool memcheck") == 10
    assert (check.out / "gpu-check.log").read_text().strip() == output.strip()
    assert {path.name for path in check.out.iterdir()} == {"gpu-check.log", "results.tgz"}
    with tarfile.open(check.out / "results.tgz") as packed:
        names = [name.removeprefix("./") for name in packed.getnames()]
        log = packed.extractfile("./gpu-sanitizer.log").read().decode()
    assert len(names) == 12 and "h200-layers-tf32.json" in names
    watched = re.findall("== (.*): exit", log)
    assert watched[-2:] == ["memcheck conv2d by warpgroups", "racecheck conv2d by warpgroups"]


def test_a_few_results_are_not_packed(check):
    assert check("layers-tf32", "wgmma-tf32")[0] == 0
    assert {path.name for path in check.out.iterdir()} == {
        "gpu-check.log", "h200-layers-tf32.json", "h200-wgmma-tf32.json",
    }  # fmt: skip


def test_results_of_kernels_that_would_not_be_used_are_not_taken(check):
    stages = ["layers-float32", "layers-tf32", "wgmma-bfloat16"]
    code, results, _, _ = check(*stages, codes=["no warpgroup products: not code for 9.0a|1"])
    assert code == 1 and results == {
        "layers-float32": "passed", "layers-tf32": "FAILED: exit code 1",
        "wgmma-bfloat16": "FAILED: exit code 1",
    }  # fmt: skip
    code, results, output, calls = check("tests", codes=["no warpgroup products: not|1"])
    assert code == 1 and "failed: warpgroup products: they would not be used" in output
    assert check("wgmma-bfloat16", codes=['9.0a" wgmma|1'])[0] == 1
    assert check("layers-bfloat16", codes=['9.0a" wgmma|1'])[0] == 0


def test_no_exchange_passes_by_skipping(check):
    _, _, output, calls = check("tests", codes=["find_spec('cupy')|1"])
    assert "cupy is not here: no exchange with it" in output
    assert "-k not cupy tests/test_cuda_interop.py" in calls and "-k cupy" not in calls


def test_a_failing_stage_does_not_stop_the_next(check):
    codes = ["numpy_says|1", "fastnn bench train|9"]
    code, results, _, _ = check("primitives", "tests", "networks-tf32", "layers-tf32", codes=codes)
    assert code == 1
    assert results == {
        "primitives": "FAILED: exit code 1", "tests": "passed",
        "networks-tf32": "FAILED: exit code 9", "layers-tf32": "passed",
    }  # fmt: skip


def test_where_there_is_no_gpu_nothing_passes(check):
    code, results, _, calls = check("primitives", "tests", codes=['device="cuda"|1'])
    assert code == 1 and results == {"primitives": "passed", "tests": "FAILED: exit code 1"}
    assert "numpy_says" in calls and "pytest -v" not in calls  # primitives may say why


def test_a_source_is_built_once_and_without_network(check):
    offline = (
        "--no-build-isolation --no-deps --no-index . --config-settings=cmake.define.FASTNN_CUDA=ON"
    )
    _, results, _, calls = check("build")
    assert results == {"build": "passed"} and offline in calls and "ARCHITECTURES=90a-real" in calls
    assert re.search("^by [1-9]", calls, re.MULTILINE), "make is to use all cores"
    assert "pip install" not in check("build")[3]
    for changed in (check.tree / "csrc/kernel.cu", check.site / "fastnn/_cuda.so"):
        changed.write_text("changed")
        assert "pip install" in check("build")[3], changed
        assert "pip install" not in check("build")[3]
    shutil.rmtree(check.site)
    _, _, output, calls = check("build", codes=["scikit_build_core|1"])
    assert "pip install --quiet .[test] --config" in calls and "needs a network" in output


def test_a_failed_build_keeps_the_rest_from_running(check):
    code, results, _, calls = check("build", "tests", codes=["install|3"])
    assert code == 1 and results == {"build": "FAILED: exit code 3", "tests": "NOT RUN"}
    assert "pytest" not in calls.replace(
        "import hypothesis, ml_dtypes, numpy, pybind11, pytest", ""
    )


def test_a_wheel_is_installed_and_must_be_of_this_source(check):
    code, _, output, calls = check("build", FASTNN_WHEEL="dist/one.whl")
    assert code == 0 and "--force-reinstall dist/one.whl" in calls and "on trust" in output
    (check.site / "fastnn/more.py").write_text("")
    code, results, output, _ = check("build", "tests", FASTNN_WHEEL="dist/one.whl")
    assert code == 1 and results["tests"] == "NOT RUN" and "more.py" in output


def test_src_on_the_path_is_refused(check):
    code, _, output, _ = check("build", SITE=str(check.tree / "src"))
    assert code == 1 and "python3 imports src/fastnn" in output


def test_findings_of_the_sanitizer_are_summed_up(check):
    code, results, output, _ = check("sanitizer", codes=["softmax|9", "racecheck|1"])
    assert code == 1 and results == {"sanitizer": "FAILED: exit code 1"}
    assert "failed: memcheck softmax\n" in output and "memcheck sum: clean" in output
    assert output.count("\nfailed: ") == 10
    assert "to be looked at, not a failure: racecheck conv2d by warpgroups" in output
    first = "========= Invalid __global__ read of size 4 bytes"
    found = "\n".join(["========= COMPUTE-SANITIZER", first, *["in a loop"] * 40, "the end"])
    _, _, output, _ = check("sanitizer", codes=["softmax|9"], said=found)
    assert first in output and "the end" in output


@pytest.mark.parametrize(
    ("said", "code", "result"),
    [
        ("Device not supported", 77, "NOT RUN"),
        ("1 cases, 0 failed", 1, "FAILED: exit code 1"),  # the sanitizer said nothing
    ],
)
def test_a_sanitizer_that_did_not_watch_has_not_passed(check, said, code, result):
    found, results, _, _ = check("sanitizer", said=said)
    assert found == code and results == {"sanitizer": result}


def test_no_sanitizer_is_not_run(check):
    (check.tools / "compute-sanitizer").unlink()
    if shutil.which("compute-sanitizer") or Path("/usr/local/cuda/bin/compute-sanitizer").exists():
        pytest.skip("there is one")
    code, results, output, _ = check("sanitizer", "tests")
    assert code == 77 and results == {"sanitizer": "NOT RUN", "tests": "passed"}
    assert "compute-sanitizer is not here" in output


def test_a_file_of_tests_that_fails_or_hangs_is_not_the_end_of_the_others(check):
    script = check.tree / "benchmarks/gpu_check.sh"
    script.write_text(script.read_text().replace('part "$file" 90', 'part "$file" 1'))
    codes = ["tensor_memory) tests/test_cuda_a.py|hang", "tensor_memory tests/|1", "and pool|7"]
    code, results, output, calls = check("tests", codes=codes)
    assert code == 1 and results == {"tests": "FAILED: exit code 1"}
    assert re.findall("(?m)^failed: (.*)$", output) == [
        "cases of pool: exit code 7", "tests/test_cuda_a.py: exit code 124",
        "warpgroup products: exit code 1", "warpgroup products for 4 multiprocessors: exit code 1",
    ]  # fmt: skip
    assert "tensor_memory) tests/test_c.py" in calls and "gpu and activation" in calls


def test_tests_without_time_are_not_run(check):
    code, results, output, calls = check("tests", LIMIT="9")
    assert code == 77 and results == {"tests": "NOT RUN"} and "pytest" not in calls
    assert "not run for lack of time: warpgroup products" in output


def test_a_stage_that_takes_too_long_is_stopped(check):
    codes = ["numpy_says|hang"]
    code, results, output, _ = check("primitives", "layers-tf32", codes=codes, LIMIT="2")
    assert code == 1 and results == {"primitives": "FAILED: out of time", "layers-tf32": "NOT RUN"}
    assert "no time is left" in output


def test_tests_of_warpgroup_products_are_run_last():
    """The script goes by their names."""
    new = re.search(r'new="(.*)"', SCRIPT.read_text())[1].split(" or ")
    found = set()
    for file in Path(__file__).parent.glob("test_*.py"):
        for test in file.read_text().split("\ndef ")[1:]:
            name = test.partition("(")[0]
            if "backends.cuda.wgmma(" in test and '"wgmma"' not in test:  # which is in the name
                found.add(name)
    assert len(found) >= 4 and all(any(word in name for word in new) for name in found), found


def test_an_unknown_stage_is_refused_before_anything_runs(check):
    code, _, output, calls = check("tests", "layers")
    assert code == 2 and "no stage layers" in output and not calls


def test_stages_bench_what_there_is():
    """The dtypes and suites in the script are those of ``fastnn bench``."""
    from fastnn.bench import Options, chosen

    text = SCRIPT.read_text()
    for dtype in re.findall(r"(?:layers|wgmma|operators|networks|compiled)-(\w+)", text):
        if dtype == "compiled":
            continue
        assert dtype == "DTYPE" or Options(dtypes=(dtype,), device="cuda")
    for suites in re.findall(r"\bbench ([a-z ]+?)(?: --.*)? ;;", text):
        assert chosen(suites.split())


def test_the_sanitizer_looks_at_cases_that_there_are():
    from fastnn.reference.case import build
    from fastnn.verify import operators

    lines = re.findall(r'^  "[01] (\w+) (.*)"$', SCRIPT.read_text(), re.MULTILINE)
    assert len(lines) == 10
    for name, cases in lines:
        assert all(build(operators()[name], case).inputs for case in cases.split())
