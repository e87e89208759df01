"""The CUDA kernels compile for the development targets and take no more registers, shared memory or
stack than recorded; no hot one spills."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def ptxas():
    spec = importlib.util.spec_from_file_location("ptxas", ROOT / "benchmarks/ptxas.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not here")
@pytest.mark.slow
def test_kernels_stay_within_their_limits(ptxas):
    worse = ptxas.complaints(ptxas.measure_all(), json.loads(ptxas.LIMITS.read_text()))
    assert not worse, "\n".join(worse)


def test_remarks_that_give_up_overlap_or_registers_are_found(ptxas):
    wgmma = "ptxas info : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized"
    registers = (
        "ptxas info : (C7508) setmaxnreg ignored; unable to determine register count at entry"
    )
    said = f"ptxas info : Compiling entry function 'f' for 'sm_90a'\n{wgmma}\n{registers}\n"
    assert ptxas.ignored(said).splitlines() == [wgmma, registers]
    assert not ptxas.ignored("ptxas info : Used 168 registers, used 9 barriers")


def test_a_spill_and_a_register_too_many_are_found(ptxas):
    fine = {"stack": 0, "spilled": 0, "registers": 100, "shared": 0}
    limits = {"sm_80": {"conv: gather_kernel<x>": fine}}
    assert ptxas.complaints(limits, limits) == []
    for worse in ({"spilled": 4}, {"registers": 109}, {"shared": 16}, {"stack": 8}):
        now = {"sm_80": {"conv: gather_kernel<x>": {**fine, **worse}}}
        assert ptxas.complaints(now, limits), worse
    assert ptxas.complaints({"sm_80": {"new: kernel": fine}}, limits)


def test_every_hot_name_is_a_kernels_and_no_recorded_spill_is_out_of_date(ptxas):
    limits = json.loads(ptxas.LIMITS.read_text())
    names = [name for kernels in limits.values() for name in kernels]
    assert [hot for hot in ptxas.HOT if not any(hot in name for name in names)] == []
    assert {key: limits[key[0]][key[1]]["spilled"] for key in ptxas.SPILLS} == ptxas.SPILLS
    assert ptxas.complaints(limits, limits) == []
