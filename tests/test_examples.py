"""The examples run and do what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(where, name, *args):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *args], cwd=where, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart_learns(tmp_path):
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", run(tmp_path, "quickstart.py"))]
    assert len(losses) == 20 and losses[-1] < 0.5 * losses[0]


def test_a_network_of_your_own(tmp_path):
    text = run(tmp_path, "train_custom.py", "4")
    assert float(re.search(r"accuracy ([\d.]+)%", text)[1]) > 85
    names = {p.name for p in (tmp_path / "runs" / "custom").iterdir()}
    assert {"model.safetensors", "metrics.jsonl", "curves.png"} <= names


def test_every_example_has_a_test():
    source = Path(__file__).read_text()
    names = [p.name for p in EXAMPLES.glob("*.py")]
    assert names and all(f'"{name}"' in source for name in names)
