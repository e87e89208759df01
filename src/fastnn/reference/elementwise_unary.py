"""Elementwise functions of one argument and their gradients; cases are in ``elementwise.py``."""

from __future__ import annotations

import numpy as np


def neg(input):
    """``-input``."""
    return -input


def neg_backward(grad_output, input):
    return {"input": -grad_output}


def abs(input):
    """``|input|``."""
    return np.abs(input)


def abs_backward(grad_output, input):
    return {"input": grad_output * np.sign(input)}


def sign(input):
    """-1, 0 or 1; NaN stays NaN."""
    return np.sign(input)


def square(input):
    """``input * input``."""
    return input * input


def square_backward(grad_output, input):
    return {"input": 2 * input * grad_output}


def sqrt(input):
    """Square root; NaN below zero."""
    return np.sqrt(input)


def sqrt_backward(grad_output, input):
    return {"input": grad_output / (2 * np.sqrt(input))}


def rsqrt(input):
    """``1 / sqrt(input)``."""
    return 1 / np.sqrt(input)


def rsqrt_backward(grad_output, input):
    return {"input": -0.5 * grad_output * input ** (-1.5)}


def reciprocal(input):
    """``1 / input``."""
    return 1 / input


def reciprocal_backward(grad_output, input):
    return {"input": -grad_output / (input * input)}


def exp(input):
    """``e ** input``."""
    return np.exp(input)


def exp_backward(grad_output, input):
    return {"input": grad_output * np.exp(input)}


def log(input):
    """Natural logarithm; -inf at zero, NaN below."""
    return np.log(input)


def log_backward(grad_output, input):
    return {"input": grad_output / input}


def sin(input):
    """Sine of radians."""
    return np.sin(input)


def sin_backward(grad_output, input):
    return {"input": grad_output * np.cos(input)}


def cos(input):
    """Cosine of radians."""
    return np.cos(input)


def cos_backward(grad_output, input):
    return {"input": -grad_output * np.sin(input)}


def floor(input):
    """Largest integer not above."""
    return np.floor(input)


def ceil(input):
    """Smallest integer not below."""
    return np.ceil(input)


def round(input):
    """Nearest integer, halves to even."""
    return np.round(input)


def _flat(grad_output, input):
    """Gradient of a step function: zero."""
    return {"input": np.zeros_like(grad_output)}


sign_backward = floor_backward = ceil_backward = round_backward = _flat
