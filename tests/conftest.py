"""Shared fixtures: every ISA level of this machine, and no state leaking between tests."""

from __future__ import annotations

import pytest

import fastnn

ISAS = fastnn.backends.cpu.available_isas()


@pytest.fixture(params=ISAS)
def isa(request):
    """Runs the test once per ISA level."""
    with fastnn.backends.cpu.isa(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _steady_state():
    """Same seed, threads and ISA level for every test, whatever the one before did."""
    threads, level = fastnn.get_num_threads(), fastnn.backends.cpu.active_isa()
    fastnn.manual_seed(0)
    yield
    fastnn.set_num_threads(threads)
    fastnn.backends.cpu.set_isa(level)
