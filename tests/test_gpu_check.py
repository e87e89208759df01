"""benchmarks/gpu_check.sh, with stand-ins for everything that needs a GPU: no stage passes unrun."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

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
esac
while IFS='|' read -r part code; do
  if [[ -n "$part" && "$*" == *"$part"* ]]; then [ "$code" = hang ] && sleep 60; exit "$code"; fi
done <<<"$CODES"
exit 0
"""
MARK = "gpu"  # so that this file does not look like one with such tests
CLEAN = "========= ERROR SUMMARY: 0 errors"


@pytest.fixture
def check(tmp_path):
    """Runs stages; returns the exit code, each stage's result, all output and the calls."""
    tree, tools = tmp_path / "tree", tmp_path / "bin"
    for path, text in {
        "csrc/kernel.cu": "", "cmake/cuda.cmake": "", "CMakeLists.txt": "", "pyproject.toml": "",
        "src/fastnn/__init__.py": "", "tests/test_a.py": f"@pytest.mark.{MARK}", "tests/test_b.py": "",
        "tests/test_c.py": f"pytestmark = pytest.mark.{MARK}",
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
        table = done.stdout.partition("stage                result")[2].splitlines()[1:]
        results = dict(re.fullmatch(r"(\S+) +(.*?) +\d+", line).groups() for line in table)
        output = done.stdout + done.stderr
        return done.returncode, results, output, calls.read_text() if calls.exists() else ""

    run.tree, run.tools, run.out, run.site = tree, tools, tmp_path / "out", tmp_path / "site"
    return run


def test_every_stage_runs_and_passes(check):
    code, results, output, calls = check()
    assert code == 0 and len(results) == 13 and set(results.values()) == {"passed"}, output
    ours = "python3 -m pytest -v -m gpu -W default --maxfail=20 -o faulthandler_timeout=60 -k"
    new = "warpgroup or wgmma or tensor_memory"
    assert [line.strip() for line in calls.splitlines() if "pytest -v" in line] == [
        f"{ours} not ({new}) tests/test_a.py", f"{ours} not ({new}) tests/test_c.py",
        f"{ours} {new} tests/test_a.py tests/test_c.py",
    ]  # fmt: skip
    assert "fastnn bench conv --batch 64 --filter n64 --dtype tf32 --device cuda" in calls
    assert "/h200-networks-bfloat16.json" in calls
    assert output.count("racecheck sum: clean") == 1
    assert (check.out / "gpu-check.log").read_text().strip() == output.strip()
    watched = re.findall("== (.*): exit", (check.out / "gpu-sanitizer.log").read_text())
    assert watched[-2:] == ["memcheck conv2d by warpgroups", "racecheck conv2d by warpgroups"]


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
    assert code == 1 and set(results.values()) == {"FAILED: exit code 1"}
    assert "pytest" not in calls


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
    assert output.count("\nfailed: ") == 11


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
    script.write_text(script.read_text().replace('part "$file" 240', 'part "$file" 1'))
    codes = ["tensor_memory) tests/test_a.py|hang", "tensor_memory tests/test_a.py|1"]
    code, results, output, calls = check("tests", codes=codes)
    assert code == 1 and results == {"tests": "FAILED: exit code 1"}
    assert (
        "failed: tests/test_a.py: exit code 124\nfailed: warpgroup products: exit code 1" in output
    )
    assert "tensor_memory) tests/test_c.py" in calls


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
    for dtype in re.findall(r"(?:layers|wgmma|operators|networks)-(\w+)", text):
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
