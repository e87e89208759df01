"""The tree keeps its promises: an operator is in every file of its family, none left out."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

from fastnn.reference.case import build, parse
from fastnn.verify import FAMILIES, call_of, families, operators

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"

#: Bound functions that are the core itself, not operators of a family.
CORE = {"array", "dlpack", "module", "random"}  # no operators of F


def bound_functions(source: Path) -> set[str]:
    return set(re.findall(r'def\((?:m, |\s*)"(\w+)"', source.read_text()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_all_its_files(family):
    for path in (
        CSRC / "ops" / f"{family}.h",
        CSRC / "ops" / f"{family}.cpp",
        CSRC / "bindings" / f"{family}.cpp",
        ROOT / "src/fastnn/functional" / f"{family}.py",
        ROOT / "src/fastnn/reference" / f"{family}.py",
        ROOT / "tests" / f"test_{family}.py",
    ):
        assert path.exists(), f"{family}: {path.relative_to(ROOT)} is missing"
    assert list((CSRC / "cpu").glob(f"{family}*.cpp")), f"{family}: no kernel source in csrc/cpu"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_bound_function_is_reached_from_the_public_layer(family):
    """A binding nobody calls is dead; one that is called is covered by its operator's cases."""
    callers = "".join(p.read_text() for p in (ROOT / "src/fastnn").rglob("*.py"))
    names = bound_functions(CSRC / "bindings" / f"{family}.cpp")
    assert names, f"{family}: no function is bound"
    dead = {name for name in names if not re.search(rf"\b_core\.{name}\b|\"{name}\"", callers)}
    assert not dead, f"{family}: bound but never called from Python: {sorted(dead)}"


def test_every_bindings_file_belongs_to_a_family():
    stems = {p.stem for p in (CSRC / "bindings").glob("*.cpp")}
    assert stems == set(FAMILIES) | CORE


@pytest.mark.parametrize("name", operators())
def test_an_operator_has_cases_and_a_docstring(name):
    op = operators()[name]
    assert op.cases, f"{name}: no cases"
    assert len(set(op.cases)) == len(op.cases), f"{name}: a case line stands twice"
    text = inspect.getdoc(call_of(name, op))
    assert text and len(text) > 40, f"{name}: the public function has no docstring"


@pytest.mark.parametrize("name", operators())
def test_an_operator_has_a_gradient_or_says_why_not(name):
    op = operators()[name]
    if op.backward is None:
        problem = build(op, op.cases[0])
        assert not problem.differentiable or problem.mutates, (
            f"{name}: no backward reference, yet its problems claim to be differentiable"
        )


@pytest.mark.parametrize("name", operators())
def test_benchmark_lines_parse(name):
    for line in operators()[name].bench:
        assert parse(line)["dtype"] in ("float32", "bfloat16")


def test_every_public_function_has_a_reference():
    """What ``fastnn.nn.functional`` offers is either checked against a reference or only a view."""
    checked = {name for ops in families().values() for name in ops}
    called = {op.call.rsplit(".", 1)[-1] for op in operators().values() if op.call}
    views = set(import_module("fastnn.functional.view").__all__)
    missing = []
    for family in FAMILIES:
        if family == "optim":
            continue
        module = import_module(f"fastnn.functional.{family}")
        missing += [n for n in module.__all__ if n not in checked | called | views]
    assert not missing, f"public functions without a reference: {missing}"


@pytest.mark.parametrize("family", FAMILIES)
def test_references_are_short_and_numpy_only(family):
    path = ROOT / "src/fastnn/reference" / f"{family}.py"
    source = path.read_text()
    assert not re.search(r"^\s*(import|from)\s+(torch|scipy|fastnn\._core)", source, re.M)
    for name, function in inspect.getmembers(
        import_module(f"fastnn.reference.{family}"), inspect.isfunction
    ):
        lines = len(inspect.getsource(function).splitlines())
        assert lines <= 60, f"{family}.{name}: {lines} lines; a reference is obvious at a glance"


def test_kernels_include_no_standard_library():
    """An inline STL function compiled with AVX-512 flags could be linked for every level."""
    allowed = {"cmath", "cstdint", "cstring", "cfloat", "climits", "immintrin.h"}
    for path in [*(CSRC / "cpu").rglob("*.cpp"), *(CSRC / "cpu").rglob("*.h")]:
        if path.name == "slots.cpp":
            continue
        included = set(re.findall(r"#include <([\w./]+)>", path.read_text()))
        assert included <= allowed, f"{path.name} includes {sorted(included - allowed)}"
        assert "std::" not in re.sub(r"//.*", "", path.read_text()), f"{path.name} uses std::"


def test_files_stay_small():
    for path in [*CSRC.rglob("*.cpp"), *CSRC.rglob("*.h"), *(ROOT / "src").rglob("*.py")]:
        lines = len(path.read_text().splitlines())
        assert lines <= 600, f"{path.relative_to(ROOT)} has {lines} lines; split it"
