"""One self-contained HTML page of benchmark results: roofline, ratios, table. No external parts."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

from fastnn.bench.peaks import Peaks
from fastnn.bench.row import Row, summaries

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #d0d7de; --mark: #0969da;
  --other: #bf5b04; --bad: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --line: #30363d;
  --mark: #58a6ff; --other: #f0883e; --bad: #ff7b72; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: 2px 8px; text-align: right; }
th:nth-child(-n+4), td:nth-child(-n+4) { text-align: left; }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font-size: 11px; }
.grid { stroke: var(--line); } .roof { stroke: var(--ink); fill: none; }
.f32 { fill: var(--mark); } .bf16 { fill: var(--other); } .slow { fill: var(--bad); }
"""


def page(about: dict[str, Any], peaks: Peaks, rows: Sequence[Row]) -> str:
    """The page as text."""
    title = f"fastnn benchmarks, {about.get('date', '')}"
    facts = "".join(
        f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>"
        for k, v in about.items()
    )
    means = "".join(f"<li>{html.escape(line)}</li>" for line in summaries(rows))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1>"
        f"<p>Measured peaks: {peaks.float32:.0f} GFLOP/s in float32, {peaks.bfloat16:.0f} in "
        f"bfloat16, {peaks.copy_gbs:.1f} GB/s copying. Medians; peers in turns with ours in one "
        f"process, the best of their configurations counts.</p><ul>{means}</ul>"
        f"<h2>Roofline</h2>{_roofline(peaks, rows)}"
        f"<h2>Best peer's time over ours</h2>{_bars(rows)}<h2>All rows</h2>{_table(rows)}"
        f"<h2>Machine</h2><table>{facts}</table></html>\n"
    )


def _roofline(peaks: Peaks, rows: Sequence[Row]) -> str:
    """Attained rate over arithmetic intensity, both logarithmic."""
    points = [r for r in rows if r.flops and r.moved]
    if not points:
        return "<p>No rows with arithmetic.</p>"
    x0, x1, y0, y1 = 60, 880, 380, 20
    low, high = -1.0, 4.0  # flops per byte, powers of ten
    bottom, top = 0.0, math.ceil(math.log10(peaks.bfloat16))

    def at(intensity: float, rate: float) -> tuple[float, float]:
        x = (math.log10(max(intensity, 10**low)) - low) / (high - low)
        y = (math.log10(max(rate, 1.0)) - bottom) / (top - bottom)
        return x0 + x * (x1 - x0), y0 + y * (y1 - y0)

    parts = [f'<svg viewBox="0 0 900 420" role="img" aria-label="roofline">']  # noqa: F541
    for power in range(int(low), int(high) + 1):
        x, _ = at(10.0**power, 1)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{y0}" x2="{x:.1f}" y2="{y1}"/>')
        parts.append(f'<text x="{x - 8:.1f}" y="{y0 + 15}">{10.0**power:g}</text>')
    for power in range(int(bottom), int(top) + 1):
        _, y = at(1, 10.0**power)
        parts.append(f'<line class="grid" x1="{x0}" y1="{y:.1f}" x2="{x1}" y2="{y:.1f}"/>')
        parts.append(f'<text x="8" y="{y + 4:.1f}">{10.0**power:g}</text>')
    for dtype in ("float32", "bfloat16"):
        peak = getattr(peaks, dtype)
        corners = [(10**low, peaks.copy_gbs * 10**low), (peak / peaks.copy_gbs, peak),
                   (10**high, peak)]  # fmt: skip
        path = " ".join("{:.1f},{:.1f}".format(*at(*corner)) for corner in corners)
        parts.append(f'<polyline class="roof" points="{path}"/>')
    for row in points:
        x, y = at(row.flops / row.moved, row.rate[0])
        kind = "bf16" if row.dtype == "bfloat16" else "f32"
        label = html.escape(f"{row.name} {row.case} {row.part}: {row.rate[0]:.0f} GFLOP/s")
        parts.append(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{label}</title></circle>'
        )
    parts.append(f'<text x="{x0}" y="415">flops per byte moved; GFLOP/s upwards</text></svg>')
    return "".join(parts)


def _bars(rows: Sequence[Row]) -> str:
    """A bar per row, 1 marked; below 1 in red."""
    shown = [(r, r.ratio) for r in rows if r.ratio is not None]
    if not shown:
        return "<p>No peers were timed.</p>"
    widest = max(ratio for _, ratio in shown)
    scale, height = 420 / min(max(widest, 2.0), 8.0), 14
    parts = [f'<svg viewBox="0 0 900 {height * len(shown) + 24}" role="img" aria-label="ratios">']
    for i, (row, ratio) in enumerate(shown):
        kind = "slow" if ratio < 1 else "bf16" if row.dtype == "bfloat16" else "f32"
        y = i * height
        label = html.escape(f"{row.name} {row.case} {row.part}")
        parts.append(
            f'<text x="0" y="{y + 11}">{label}</text>'
            f'<rect class="{kind}" x="420" y="{y + 2}" width="{min(ratio, 8) * scale:.1f}" '
            f'height="{height - 4}"/><text x="{424 + min(ratio, 8) * scale:.1f}" y="{y + 11}">'
            f"{ratio:.2f}</text>"
        )
    end = height * len(shown)
    parts.append(f'<line class="roof" x1="{420 + scale}" y1="0" x2="{420 + scale}" y2="{end}"/>')
    return "".join(parts) + "</svg>"


def _table(rows: Sequence[Row]) -> str:
    peers = sorted({name for row in rows for name in row.peers})
    head = ["operator", "case", "pass", "type", "ms", "spread", "rate", "unit", "of roofline"]
    cells = ["".join(f"<th>{html.escape(h)}</th>" for h in head + [f"{p}, ms" for p in peers])]
    cells[0] += "<th>ratio</th>"
    for row in rows:
        rate, unit = row.rate
        values = [row.name, row.case, row.part, row.dtype, f"{row.seconds * 1e3:.3f}",
                  f"{row.spread:.0%}", f"{rate:.1f}", unit, f"{row.share:.0%}"]  # fmt: skip
        values += [f"{row.peers[p] * 1e3:.3f}" if p in row.peers else "-" for p in peers]
        values.append("-" if row.ratio is None else f"{row.ratio:.2f}")
        cells.append("".join(f"<td>{html.escape(v)}</td>" for v in values))
    return "<table>" + "".join(f"<tr>{c}</tr>" for c in cells) + "</table>"
