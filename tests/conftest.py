"""Shared fixtures: every ISA level of this machine, and no state leaking between tests."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

import fastnn
from fastnn.verify import FAMILIES


def _cuda_device() -> str | None:
    """A GPU if there is one, else its emulation if that was built, else None."""
    if "FASTNN_CUDA_EMULATE" not in os.environ and not fastnn.cuda.is_available():
        if find_spec("fastnn._cuda_emulated"):
            os.environ["FASTNN_CUDA_EMULATE"] = "1"
            fastnn.device.cuda_module()  # built, so it has to load: no tests are skipped for that
    return "cuda" if fastnn.cuda.is_available() else None


CUDA = _cuda_device()


def pytest_configure(config):
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    fastnn.set_num_threads(
        min(fastnn.get_num_threads(), max(2, fastnn.get_num_threads() // workers))
    )
    for family in FAMILIES:
        config.addinivalue_line("markers", f"{family}: cases of this family of operators")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """``pytest -n auto``: up to eight processes, as many as there are cores and 4 GB of memory for each.
    ``PYTEST_XDIST_AUTO_NUM_WORKERS`` says otherwise."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return max(1, min(8, fastnn.get_num_threads(), round(memory / 4)))


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and CUDA is None:
            item.add_marker(pytest.mark.skip(reason="no GPU, and built without emulation"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """With ``FASTNN_NO_SKIP=1`` a test that is skipped has failed: benchmarks/gpu_check.sh asks for one."""
    report = yield
    if os.environ.get("FASTNN_NO_SKIP") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", report.longrepr[2]
    return report


ISAS = fastnn.backends.cpu.available_isas()


@pytest.fixture(params=ISAS)
def isa(request):
    """Runs the test once per ISA level."""
    with fastnn.backends.cpu.isa(request.param):
        yield request.param


@pytest.fixture
def around_the_caches():
    """Outputs are written by streaming stores, whatever their size; called with False, by none."""
    fastnn._core.assume_left_caches(True)
    yield fastnn._core.assume_left_caches
    fastnn._core.assume_left_caches(None)


@pytest.fixture(autouse=True)
def _steady_state():
    """Same seed, threads and ISA level for every test, whatever the one before did."""
    threads, level = fastnn.get_num_threads(), fastnn.backends.cpu.active_isa()
    fastnn.manual_seed(0)
    yield
    fastnn.set_num_threads(threads)
    fastnn.backends.cpu.set_isa(level)
