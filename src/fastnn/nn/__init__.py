"""Layers and containers."""

from fastnn.nn import functional as functional
