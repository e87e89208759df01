"""Joining, cutting, padding, indexing: references and cases."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastnn.reference.case import BadCall, Op, Params, Problem


def cat(tensors, dim=0):
    return np.concatenate(tensors, dim)


def cat_backward(grad_output, tensors, dim=0):
    ends = np.cumsum([t.shape[dim] for t in tensors])[:-1]
    return {"tensors": np.split(grad_output, ends, dim)}


def stack(tensors, dim=0):
    return np.stack(tensors, dim)


def stack_backward(grad_output, tensors, dim=0):
    return {"tensors": [np.take(grad_output, i, dim) for i in range(len(tensors))]}


def _sections(size, split_size_or_sections):
    if isinstance(split_size_or_sections, int):
        step = split_size_or_sections
        return [min(step, size - i) for i in range(0, size, step)] or [0]
    return list(split_size_or_sections)


def split(input, split_size_or_sections, dim=0):
    sections = _sections(input.shape[dim], split_size_or_sections)
    return tuple(np.split(input, np.cumsum(sections)[:-1], dim))


def split_backward(grad_output, input, split_size_or_sections, dim=0):
    """The gradient of the first piece alone: the others are not used."""
    grad = np.zeros_like(input)
    np.moveaxis(grad, dim, 0)[: grad_output.shape[dim]] = np.moveaxis(grad_output, dim, 0)
    return {"input": grad}


def chunk(input, chunks, dim=0):
    return split(input, max(1, -(-input.shape[dim] // chunks)), dim)


def chunk_backward(grad_output, input, chunks, dim=0):
    return split_backward(grad_output, input, 1, dim)


def flip(input, dims):
    return np.flip(input, dims)


def flip_backward(grad_output, input, dims):
    return {"input": np.flip(grad_output, dims)}


def _widths(input, pad):
    """Per dimension (before, after), from PyTorch's order of last dimension first."""
    pairs = [tuple(pad[i : i + 2]) for i in range(0, len(pad), 2)]
    return [(0, 0)] * (input.ndim - len(pairs)) + pairs[::-1]


def pad(input, pad, mode="constant", value=0.0):
    widths = _widths(input, pad)
    cut = tuple(slice(max(-b, 0), n - max(-a, 0)) for n, (b, a) in zip(input.shape, widths))  # noqa: B905
    grow = [(max(b, 0), max(a, 0)) for b, a in widths]
    if mode == "constant":
        return np.pad(input[cut], grow, constant_values=value)
    return np.pad(input, grow, mode=_NUMPY_MODES[mode])


_NUMPY_MODES: Any = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def pad_backward(grad_output, input, pad, mode="constant", value=0.0):
    grad = np.zeros_like(input)
    if mode != "constant":
        places = np.pad(
            np.arange(input.size).reshape(input.shape), _widths(input, pad), mode=_NUMPY_MODES[mode]
        )
        np.add.at(grad.reshape(-1), places.reshape(-1), grad_output.reshape(-1))
        return {"input": grad}
    inner, outer = [], []
    for size, (before, after) in zip(input.shape, _widths(input, pad), strict=True):
        first, last = max(-before, 0), size - max(-after, 0)
        inner.append(slice(first, last))
        outer.append(slice(max(before, 0), max(before, 0) + last - first))
    grad[tuple(inner)] = grad_output[tuple(outer)]
    return {"input": grad}


def one_hot(input, num_classes=-1):
    rows = input.max() + 1 if num_classes == -1 else num_classes
    return np.eye(rows, dtype=np.int64)[input]


def index_select(input, dim, index):
    return np.take(input, index, dim)


def index_select_backward(grad_output, input, dim, index):
    grad = np.zeros_like(input)
    np.add.at(np.moveaxis(grad, dim, 0), index, np.moveaxis(grad_output, dim, 0))
    return {"input": grad}


def _shape(p: Params) -> tuple[int, ...]:
    return tuple(p[key] for key in "nclhw" if key in p)


def _cat_problem(p: Params, rng: np.random.Generator) -> Problem:
    """n c l h w of the first tensor, d dimension, t tensors, each larger by one along d."""
    parts = []
    for i in range(p["t"]):
        shape = list(_shape(p))
        shape[p["d"]] += i
        parts.append(rng.standard_normal(shape))
    return Problem({"tensors": parts}, {"dim": p["d"]})


def _stack_problem(p: Params, rng: np.random.Generator) -> Problem:
    parts = [rng.standard_normal(_shape(p)) for _ in range(p["t"])]
    return Problem({"tensors": parts}, {"dim": p["d"]})


def _input_problem(key: str, name: str) -> Any:
    """Problems of one input and one argument, read from ``key`` of the line."""

    def build(p: Params, rng: np.random.Generator) -> Problem:
        value = p[key]
        kwargs = {name: list(value) if isinstance(value, tuple) else value}
        if "d" in p and key != "d":
            kwargs["dim"] = p["d"]
        return Problem({"input": rng.standard_normal(_shape(p))}, kwargs)

    return build


def _flip_problem(p: Params, rng: np.random.Generator) -> Problem:
    value = p["d"]
    return Problem({"input": rng.standard_normal(_shape(p))},
                   {"dims": value if isinstance(value, tuple) else (value,)})  # fmt: skip


def _pad_problem(p: Params, rng: np.random.Generator) -> Problem:
    """p widths, v value; reflect, replicate, circular."""
    kwargs = {"pad": list(p["p"]), "value": p.get("v", 0.0)}
    for mode in _NUMPY_MODES:
        if mode in p:
            kwargs["mode"] = mode
    x = rng.standard_normal(_shape(p))
    repeats = int(np.prod([1 + abs(w) for w in p["p"]])) if "mode" in kwargs else 1
    return Problem({"input": x}, kwargs, k_backward=repeats)


def _one_hot_problem(p: Params, rng: np.random.Generator) -> Problem:
    """i classes; exact: as many as the largest label asks for."""
    labels = rng.integers(0, p["i"], _shape(p))
    kwargs = {} if "exact" in p else {"num_classes": p["i"]}
    return Problem({"input": labels}, kwargs, differentiable=False)


def _select_problem(p: Params, rng: np.random.Generator) -> Problem:
    """i positions along dimension d, some of them twice, some negative."""
    x = rng.standard_normal(_shape(p))
    size = x.shape[p["d"]]
    index = rng.integers(-size, size, p["i"])
    return Problem({"input": x}, {"dim": p["d"], "index": index}, k=1, k_backward=p["i"] + 1)


_CAT = (
    "n2c3h4w5_d1t3_f32", "n2c3h4w5_d0t2_f32", "n1c1_d1t1_f32", "n3c7_d-1t4_f32", "n0c4h2w2_d1t2_f32",
    "n2c3h4w5_d3t2_f32", "n2c17h3w3_d1t2_bf16", "n2c3l4_d2t3_f32",
)  # fmt: skip
_STACK = ("n2c3_d0t3_f32", "n2c3h4_d-1t2_f32", "n1_d1t1_f32", "n5c4_d1t2_bf16")
_SPLIT = ("n7c3_k2_f32", "n2c9h3w3_k4d1_f32", "n2c6h3w3_k1x2x3d1_f32", "n3c8_k5d-1_f32",
          "n4c6_k3_bf16", "n0c3_k2_f32")  # fmt: skip
_CHUNK = ("n7c3_k3_f32", "n2c10h3w3_k4d1_f32", "n2c3_k9_f32", "n4c6_k2d1_bf16")
_FLIP = ("n3c4_d0_f32", "n2c3h4w5_d2x3_f32", "n2c3h4w5_d-1_f32", "n0c3_d1_f32", "n2c9_d1_bf16")
_PAD = ("n2c3_p1x2_f32", "n2c3h4w5_p1x2x3x0_f32", "n2c3h4w5_p-1x2x0x-2v7.5_f32",
        "n1c2h3w3_p0x0x1x1x2x1x1x0_f32", "n0c3h2w2_p1x1_f32", "n2c17h3w3_p1x1x1x1_bf16",
        "n2c3h4w5_p1x2x3x0_reflect_f32", "n2c3h4w5_p1x2x3x4_replicate_f32",
        "n2c3h4w5_p5x2x0x4_circular_f32", "n1c17h5w3_p2x2x4x1_reflect_bf16",
        "n2c3_p4x1_replicate_f32", "n3c4h2w3_p3x1x1x2_circular_f32",
        "n2c5h1w1_p0x0x3x3_replicate_f32", "n0c3h4w4_p1x1x2x2_reflect_f32",
        "n2c3l5_p4x4_reflect_f32", "n2c19h5w6_p3x1x2x2_replicate_bf16")  # fmt: skip
_SELECT = ("n5c3_d0i7_f32", "n4c3h3w3_d0i6_f32", "n2c5h3w4_d1i4_f32", "n2c1h3w3_d1i4_f32",
           "n3c4h2w1_d2i3_f32", "n3c4h1w1_d0i3_f32", "n2c3h4w5_d-1i9_f32",
           "n6_d0i0_f32", "n6c4h2w2_d0i5_bf16", "n6l3_d0i20_f32")  # fmt: skip

OPS: dict[str, Op] = {
    "cat": Op(cat, cat_backward, _cat_problem, _CAT, ("n16c256h28w28_d1t4_f32",), "cat"),
    "stack": Op(stack, stack_backward, _stack_problem, _STACK, (), "stack"),
    "split": Op(split, split_backward, _input_problem("k", "split_size_or_sections"), _SPLIT, (),
                "split"),
    "chunk": Op(chunk, chunk_backward, _input_problem("k", "chunks"), _CHUNK, (), "chunk"),
    "flip": Op(flip, flip_backward, _flip_problem, _FLIP, (), "flip"),
    "pad": Op(pad, pad_backward, _pad_problem, _PAD, ("n16c64h56w56_p1x1x1x1_f32",),
              "nn.functional.pad"),
    "one_hot": Op(one_hot, None, _one_hot_problem,
                  ("n5_i3_f32", "n2c3_i7_f32", "n1c2h3w4_i1_f32", "n9c5_i4_exact_f32"), (),
                  "nn.functional.one_hot"),
    "index_select": Op(index_select, index_select_backward, _select_problem, _SELECT,
                       ("n1437c1h32w32_d0i128_f32",), "index_select"),
}  # fmt: skip


def _bad(name: str, match: str, call: Any, error: type[Exception] = ValueError) -> BadCall:
    return BadCall(name, call, error, match)


ERRORS: list[BadCall] = [
    _bad("cat shapes", r"cat: tensor 1 expects shape \(2, 3\) but for dimension 0, got \(2, 4\)",
         lambda f: f.cat([f.zeros(2, 3), f.zeros(2, 4)])),
    _bad("cat nothing", "cat: expected at least one tensor", lambda f: f.cat([])),
    _bad("cat dim", "cat: dim expects -2 to 1, got 2", lambda f: f.cat([f.zeros(2, 3)], 2)),
    _bad("stack shapes", r"stack: tensor 1 expects shape \(2,\), got \(3,\)",
         lambda f: f.stack([f.zeros(2), f.zeros(3)])),
    _bad("split size", "split: split size expects a value > 0", lambda f: f.split(f.zeros(4), 0)),
    _bad("split sections", "sections expect to add up to 4", lambda f: f.split(f.zeros(4), [1, 2])),
    _bad("chunk", "chunk: chunks expects a value > 0", lambda f: f.chunk(f.zeros(4), 0)),
    _bad("pad odd", "pad: expected a pair of widths", lambda f: f.nn.functional.pad(f.zeros(4), [1])),
    _bad("pad cut", "leave nothing", lambda f: f.nn.functional.pad(f.zeros(4), [-3, -2])),
    _bad("pad mode", "pad: mode expects one of constant, reflect, replicate, circular, got 'mirror'",
         lambda f: f.nn.functional.pad(f.zeros(4), [1, 1], mode="mirror")),
    _bad("pad reflect", r"pad: mode 'reflect' expects widths from 0 to 3 for size 4, got \(1, 4\)",
         lambda f: f.nn.functional.pad(f.zeros(4), [1, 4], mode="reflect")),
    _bad("pad circular", r"expects widths from 0 to 4 for size 4, got \(5, 0\)",
         lambda f: f.nn.functional.pad(f.zeros(4), [5, 0], mode="circular")),
    _bad("pad replicate", r"expects widths from 0 for size 4, got \(0, -1\)",
         lambda f: f.nn.functional.pad(f.zeros(4), [0, -1], mode="replicate")),
    _bad("pad nothing", r"expects widths from 0 to 0 for size 0, got \(1, 1\)",
         lambda f: f.nn.functional.pad(f.zeros(2, 0), [1, 1], mode="replicate")),
    _bad("pad value", "mode 'reflect' takes no value, got 2.0",
         lambda f: f.nn.functional.pad(f.zeros(4), [1, 1], "reflect", 2.0)),
    _bad("index range", "index: 4 is out of range for dimension 0 of size 4",
         lambda f: f.zeros(4)[4], IndexError),
    _bad("index rows", "positions expect -4 to 3", lambda f: f.zeros(4, 2)[[0, 4]], IndexError),
    _bad("index count", "too many indices", lambda f: f.zeros(4)[0, 0], IndexError),
    _bad("index type", "index: expected integers", lambda f: f.zeros(4)["a"], TypeError),
    _bad("index floats", "index: expected integers or booleans", lambda f: f.zeros(4)[[0.5]], TypeError),
]  # fmt: skip
