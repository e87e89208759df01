"""What every family's tests share: one call that checks a case line and prints its reproducer."""

from __future__ import annotations

import os

from hypothesis import settings

import fastnn
from fastnn.verify import Result, run_case

#: Property tests: the same examples in every run; no deadline, for machines are noisy.
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)


def check(op: str, line: str, device: str = "cpu") -> Result:
    """Runs a case on a device (at the active ISA level) and fails with its one-line reproducer."""
    result = run_case(op, line, device=device)
    assert result.ok, result.explain()
    return result


def check_everywhere(op: str, line: str) -> None:
    """Runs a case on every ISA level of this machine, and on a GPU or its emulation; or on the device that
    ``FASTNN_CHECK_ON`` names alone."""
    if device := os.environ.get("FASTNN_CHECK_ON"):
        check(op, line, device)
        return
    for isa in fastnn.backends.cpu.available_isas():
        with fastnn.backends.cpu.isa(isa):
            check(op, line)
    if fastnn.cuda.is_available():
        check(op, line, "cuda")
