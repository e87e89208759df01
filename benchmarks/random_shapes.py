"""Times convolutions of random shapes beside PyTorch: ``python benchmarks/random_shapes.py [OPTION ...]``.

The layer table holds what common networks use. This draws what nobody has tuned for: odd sizes and
channel counts, groups and channel multipliers, flat kernels, strides, dilation. Options go to
``fastnn bench``, but ``--count`` and ``--seed``; the lowest ratios are printed once more at the end.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

from fastnn import cli
from fastnn.bench import Row, format_row

MOST_FLOPS = 5e9


def line(draw: random.Random) -> str:
    """A case line of a convolution of at most MOST_FLOPS operations."""
    while True:
        n, size = draw.choice([1, 1, 4, 16, 32]), draw.choice([7, 8, 13, 14, 20, 28, 32, 56, 65])
        groups = draw.choice([1, 1, 1, 1, 2, 4, 8, 32])
        inputs = draw.choice([1, 3, 4, 8, 12, 16, 24, 32, 40, 48, 64, 96, 100, 128, 160, 192, 256])
        outputs = draw.choice([1, 2, 6, 10, 16, 19, 24, 32, 48, 64, 80, 100, 128, 192, 256])
        if draw.random() < 0.12:  # depthwise, or each channel several times
            groups, outputs = inputs, inputs * draw.choice([1, 1, 2])
        inputs = max(1, inputs // groups) * groups
        outputs = max(1, outputs // groups) * groups
        kh = draw.choice([1, 1, 2, 3, 3, 3, 4, 5, 7])
        kw = draw.choice([kh, kh, kh, kh, 1, 3])
        stride, dilation = draw.choice([1, 1, 1, 2, 2, 3]), draw.choice([1, 1, 1, 1, 2, 3])
        padded = draw.random() < 0.67
        ph, pw = (kh // 2 * dilation, kw // 2 * dilation) if padded else (0, 0)
        fits = size + 2 * min(ph, pw) > (max(kh, kw) - 1) * dilation
        flops = 2 * n * inputs * outputs // groups * size**2 * kh * kw // stride**2
        if fits and flops <= MOST_FLOPS:
            return (
                f"n{n}c{inputs}h{size}w{size}_oc{outputs}_k{kh}x{kw}s{stride}p{ph}x{pw}d{dilation}"
                f"g{groups}_nobias"
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--count", type=int, default=100, help="shapes (default: 100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("random_shapes.json"))
    own, options = parser.parse_known_args()
    draw = random.Random(own.seed)
    cases = [f"--case={line(draw)}" for _ in range(own.count)]
    code = cli.main(["bench", "conv2d", *cases, "--json", str(own.json), *options])
    if code > 1:
        return code
    rows = [Row(**row) for row in json.loads(own.json.read_text())["rows"] if row.get("peers")]
    print("lowest:")
    for row in sorted(rows, key=lambda row: row.ratio)[:20]:
        print(format_row(row))
    return code


if __name__ == "__main__":
    sys.exit(main())
