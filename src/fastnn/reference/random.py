"""Philox4x32-10 in NumPy (Salmon, Moraes, Dror, Shaw, SC'11)."""
