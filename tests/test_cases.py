"""Every family's case table: kernels against references, references against finite differences."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
from harness import check

import fastnn
from fastnn.reference.case import build, parse
from fastnn.verify import FAMILIES, as_tuple, families, operators

CASES = [
    pytest.param(name, line, id=f"{name}-{line}", marks=getattr(pytest.mark, family))
    for family, ops in families().items()
    for name, op in ops.items()
    for line in op.cases
]
ERRORS = [
    pytest.param(bad, id=f"{family}-{bad.name}")
    for family in FAMILIES
    for bad in import_module(f"fastnn.reference.{family}").ERRORS
]


@pytest.mark.parametrize(("name", "line"), CASES)
def test_kernel_matches_reference(name, line, isa):
    check(name, line)


@pytest.mark.parametrize(("name", "line"), CASES)
def test_same_bits_for_outputs_written_around_the_caches(name, line, isa, around_the_caches):
    streamed = check(name, line).arrays
    around_the_caches(False)
    for a, b in zip(streamed, check(name, line).arrays, strict=True):
        assert a.tobytes() == b.tobytes(), f"{name} {line}: streaming stores give other bits"


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "line"), CASES)
def test_cuda_kernel_matches_reference(name, line):
    first = check(name, line, "cuda").arrays
    for a, b in zip(first, check(name, line, "cuda").arrays, strict=True):
        assert a.tobytes() == b.tobytes(), f"{name} {line}: two runs give different bits"


@pytest.mark.parametrize(("name", "line"), CASES)
def test_same_bits_for_any_number_of_threads(name, line):
    seen = []
    for threads in (1, 2, 3):
        fastnn.set_num_threads(threads)
        seen.append(check(name, line).arrays)
    for other in seen[1:]:
        for a, b in zip(seen[0], other, strict=True):
            assert a.tobytes() == b.tobytes(), f"{name} {line}: bits depend on the thread count"


@pytest.mark.parametrize("name", [n for n, op in operators().items() if op.backward is not None])
def test_reference_gradients_match_finite_differences(name):
    op = operators()[name]
    checked = 0
    for line in op.cases:
        problem = build(op, line)
        if problem.differentiable and parse(line)["dtype"] == "float32":
            checked += _finite_differences(op, problem, line)
    assert checked > 0, f"{name}: no case has a gradient element to check"


def _finite_differences(op, problem, line, eps=1e-6, samples=6):
    """Central differences of sum(output * w) in float64 on a few elements of each input."""
    rng = np.random.default_rng(0)

    def copies():
        return {
            k: [a.copy() for a in v] if isinstance(v, list) else v.copy() if v is not None else None
            for k, v in problem.inputs.items()
        }

    first = as_tuple(op.forward(**copies(), **problem.kwargs))[0]
    weight = rng.standard_normal(np.shape(first))
    wanted = op.backward(weight, **copies(), **problem.kwargs)

    def objective(name, j, at, step):
        moved = copies()
        target = moved[name][j] if isinstance(moved[name], list) else moved[name]
        target[at] += step
        return float((as_tuple(op.forward(**moved, **problem.kwargs))[0] * weight).sum())

    checked = 0
    for name, gradients in wanted.items():
        several = isinstance(gradients, (list, tuple))
        for j, gradient in enumerate(gradients if several else [gradients]):
            if gradient is None or gradient.size == 0:
                continue
            for flat in rng.permutation(gradient.size)[:samples]:
                at = np.unravel_index(flat, gradient.shape)
                numeric = (objective(name, j, at, eps) - objective(name, j, at, -eps)) / (2 * eps)
                assert abs(numeric - gradient[at]) <= 1e-5 * (1 + abs(numeric)) + 1e-6, (
                    f"{line}: gradient of {name} at {at}: {gradient[at]} against {numeric}"
                )
                checked += 1
    return checked


@pytest.mark.parametrize("bad", ERRORS)
def test_bad_call_raises_a_clear_error(bad):
    with pytest.raises(bad.error, match=bad.match):
        bad.call(fastnn)
