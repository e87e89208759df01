"""Weights and checkpoints on disk: safetensors files that no crash can tear."""

from fastnn.io.atomic import atomic_write
from fastnn.io.model import load_model, save_model
from fastnn.io.nested import load_nested, save_nested
from fastnn.io.tensors import load_state, save_state

__all__ = [
    "atomic_write", "load_model", "load_nested", "load_state", "save_model", "save_nested",
    "save_state",
]  # fmt: skip
