"""fastnn: hand-written, verified kernels for convolutional networks under a PyTorch-like layer."""

from __future__ import annotations

from typing import Any

from fastnn import _load as _load  # isort: skip  # before anything else loads _core
from fastnn._core import empty_cache, memory_stats, reset_peak_memory_stats
from fastnn.autograd import (
    autocast,
    enable_grad,
    grad,
    inference_mode,
    is_autocast_enabled,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
)
from fastnn.backends import get_num_threads, set_num_threads
from fastnn.creation import (
    arange,
    empty,
    empty_like,
    full,
    ones,
    ones_like,
    zeros,
    zeros_like,
)
from fastnn.dtypes import DType, bfloat16, float32, int32, int64, uint8
from fastnn.dtypes import bool_ as bool
from fastnn.random import (
    get_rng_state,
    manual_seed,
    rand,
    rand_like,
    randint,
    randn,
    randn_like,
    randperm,
    set_rng_state,
)
from fastnn.tensor import Tensor, as_tensor, from_dlpack, from_numpy, tensor

__version__ = "0.1.0"


def _attach() -> None:
    """Gives Tensor the operators of every family as methods."""
    from importlib import import_module

    from fastnn import random
    from fastnn.functional import __name__ as package
    from fastnn.tensor import attach_methods

    attach_methods(random.TENSOR_METHODS)
    for family in _FAMILIES:
        attach_methods(import_module(f"{package}.{family}").TENSOR_METHODS)


_FAMILIES = (
    "activation", "conv", "dropout", "elementwise", "interpolate", "loss", "matmul", "norm",
    "operators", "pool", "reduce", "shape", "softmax", "view",
)  # fmt: skip
_attach()

from fastnn import nn, optim  # noqa: E402
from fastnn.functional.elementwise import *  # noqa: E402
from fastnn.functional.matmul import *  # noqa: E402
from fastnn.functional.pad import *  # noqa: E402
from fastnn.functional.reduce import *  # noqa: E402
from fastnn.functional.shape import *  # noqa: E402
from fastnn.functional.view import *  # noqa: E402

_LAZY = ("backends", "bench", "cuda", "data", "gradcheck", "io", "models", "reference", "summary", "train",
         "verify", "viz")  # fmt: skip


def __getattr__(name: str) -> Any:
    """Loads parts that a plain ``import fastnn`` does not need when they are first used."""
    if name == "compile":
        from fastnn.compiler import compile

        globals()[name] = compile
        return compile
    if name in _LAZY:
        from importlib import import_module

        module = import_module(f"fastnn.{name}")
        # fastnn.gradcheck and fastnn.summary are functions, kept in modules of the same name.
        value = getattr(module, name) if name in ("gradcheck", "summary") else module
        globals()[name] = value
        return value
    raise AttributeError(f"module 'fastnn' has no attribute {name!r}")
