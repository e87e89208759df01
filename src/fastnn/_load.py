"""Loads the extension module with short spinning.

The OpenMP runtime reads its settings once, when it is loaded. Its default is to spin for milliseconds
at the end of every parallel region, which costs a factor of ten as soon as another process wants a core
(measured: 1.17 s instead of 0.09 s for a training step with one of two cores taken). A few microseconds
keep what spinning is good for. A choice the user has made stands, and the environment is left as it was.
"""

from __future__ import annotations

import os
from importlib import import_module

if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
    import_module("fastnn._core")
else:
    os.environ["GOMP_SPINCOUNT"] = "2000"
    try:
        import_module("fastnn._core")
    finally:
        del os.environ["GOMP_SPINCOUNT"]
