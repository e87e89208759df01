"""Rewrites README's table from a committed result: ``python benchmarks/readme_table.py results/x.json``.

Results are written by ``fastnn bench --json``; each says its machine, versions and date.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
#: Rows shown: (operator, case).
SHOWN = (
    ("conv2d", "n16c64h56w56_oc64_k3p1_nobias_f32"),
    ("conv2d", "n16c128h28w28_oc128_k3p1_nobias_f32"),
    ("conv2d", "n16c512h7w7_oc512_k3p1_nobias_f32"),
    ("conv2d", "n16c64h56w56_oc64_k1_nobias_f32"),
    ("linear", "n16i2048o1000_f32"),
    ("batch_norm", "n16c256h56w56_f32"),
    ("max_pool2d", "n16c64h112w112_k3s2p1_f32"),
    ("dropout", "n16c64h56w56_p0.5_f32"),
    ("gelu", "n16c64h56w56_f32"),
    ("cross_entropy", "n128c1000_f32"),
    ("adam_step", "size25557032_f32"),
)


def table(result: dict) -> str:
    """The markdown table and the line under it."""
    lines = [
        "| operator | case | pass | time | rate | of measured peak | PyTorch's time / ours |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for op, case in SHOWN:
        for row in result["rows"]:
            if (row["op"], row["case"]) != (op, case):
                continue
            ratio = row["torch_seconds"] and row["torch_seconds"] / row["seconds"]
            lines.append(
                f"| {op} | `{case}` | {row['direction']} | {row['seconds'] * 1e3:.2f} ms "
                f"| {row['rate']:.0f} {row['unit']} | {row['share']:.0%} "
                f"| {f'{ratio:.2f}' if ratio else '-'} |"
            )
    ratios = [r["torch_seconds"] / r["seconds"] for r in result["rows"] if r["torch_seconds"]]
    about, peaks = result["about"], result["peaks"]
    mean = statistics.geometric_mean(ratios)
    lines += [
        "",
        f"{len(result['rows'])} rows in all; PyTorch's time over ours has geometric mean {mean:.2f} "
        f"(above 1: we are faster). Machine: {about['cores']} cores of {about['processor']}, "
        f"{about['instruction set in use']}, measured peaks {peaks['gflops']:.0f} GFLOP/s and "
        f"{peaks['copy_gbs']:.0f} GB/s copying; PyTorch {about.get('torch', 'absent')}; "
        f"{about.get('date', 'undated')}. Medians, the two in turns in one process, PyTorch in the better "
        "of its two memory layouts.",
    ]
    return "\n".join(lines)


def main(path: str) -> None:
    """Replaces what stands between the markers."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[-1]
    body = table(json.loads(Path(path).read_text()))
    readme.write_text(f"{before}{BEGIN}\n{body}\n{END}{after}")


if __name__ == "__main__":
    main(sys.argv[1])
