"""Rewrites README's tables from committed results: ``python benchmarks/readme_table.py results/*.json``.

Results are written by ``fastnn bench --json``; each says its machine, versions and date. Those of one
machine make one section, in the order they come. With ``--check`` nothing is written, and the exit
code says whether README is up to date.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
TYPES = {"float32": "f32", "bfloat16": "bf16", "tf32": "tf32"}

Row = dict[str, Any]


def ratio(row: Row) -> float | None:
    """The fastest peer's time over ours."""
    return min(row["peers"].values()) / row["seconds"] if row["peers"] else None


def networks(rows: list[Row]) -> Iterator[str]:
    """Training and inference: every row, if there are any."""
    rows = [row for row in rows if row["suite"] in ("train", "infer")]
    if not rows:
        return
    yield "| network | batch | type | ours | fastest peer | its time / ours |"
    yield "| --- | --- | --- | ---: | --- | ---: |"
    for row in rows:
        what = f"{row['name']} {'training step' if row['suite'] == 'train' else 'inference'}"
        best = min(row["peers"], key=row["peers"].get, default=None)
        images = row["extra"]["images per second"]
        yield (
            f"| {what} | `{row['case']}` | {TYPES[row['dtype']]} | {images:.1f} images/s "
            f"| {best or '-'} | {f'{ratio(row):.2f}' if best else '-'} |"
        )
    yield ""


def suites(rows: list[Row]) -> Iterator[str]:
    """The other suites: geometric mean, lowest, and rows below 1, per pass and type."""
    yield "| suite | pass | type | rows | geometric mean | lowest | below 1 |"
    yield "| --- | --- | --- | ---: | ---: | ---: | ---: |"
    groups: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        found = ratio(row)
        if row["suite"] not in ("train", "infer") and found is not None:
            key = (row["suite"], row["part"], TYPES[row["dtype"]])
            groups.setdefault(key, []).append(found)
    for key, found in groups.items():
        mean = statistics.geometric_mean(found)
        below = sum(value < 1 for value in found)
        yield f"| {' | '.join(key)} | {len(found)} | {mean:.2f} | {min(found):.2f} | {below} |"


def machines(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """Of each machine, the rows of all its results, the facts of the first completed by the others.

    Virtual machines hide which processor they have: the instruction set level is part of its name
    (and, since 2026-11-30, family and model are).
    """
    of: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for path in paths:
        result = json.loads(path.read_text())
        if not result.get("complete", True):
            raise SystemExit(f"{path}: its run was stopped before the end")
        if any("error" in row for row in result["rows"]):
            raise SystemExit(f"{path}: has rows that failed")
        key = tuple(
            result["about"][what] for what in ("processor", "cores", "instruction set in use")
        )
        of.setdefault(key, []).append(result)
    for results in of.values():
        about: dict[str, Any] = {}
        for result in results:
            about = result["about"] | about
        rows = [row for result in results for row in result["rows"]]
        yield {"about": about, "peaks": results[0]["peaks"], "rows": rows}


def table(result: dict[str, Any]) -> str:
    """One machine's section."""
    about, peaks = result["about"], result["peaks"]
    versions = ", ".join(
        f"{title} {about[name]}"
        for name, title in (("torch", "PyTorch"), ("onnxruntime", "ONNX Runtime"),
                            ("openvino", "OpenVINO"))
        if name in about
    )  # fmt: skip
    lines = [
        f"#### {about['cores']} cores of {about['processor']}, level {about['instruction set in use']}",
        "",
        *networks(result["rows"]),
        "Operators and layers against PyTorch, its time over ours (above 1: we are faster):", "",
        *suites(result["rows"]), "",
        f"Measured peaks {peaks['float32']:.0f} GFLOP/s in float32, {peaks['bfloat16']:.0f} in bfloat16, "
        f"{peaks['copy_gbs']:.0f} GB/s copying; {versions}; {about['date']}. Medians; all take turns in "
        "one process with the same number of threads, and the fastest configuration of each peer counts "
        "(both memory layouts, in training compiled and not, fused optimizer, autocast, flushed "
        "denormals; OpenVINO's latency and throughput hints).",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    """Replaces what stands between the markers, or compares it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="machine by machine")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[-1]
    tables = "\n\n".join(map(table, machines(args.results)))
    wanted = f"{before}{BEGIN}\n{tables}\n{END}{after}"
    if args.check:
        return int(wanted != text)
    readme.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
