"""Time of every operator beside this machine's measured peaks and, when installed, PyTorch."""

from fastnn.bench.peaks import Peaks, measure_peaks
from fastnn.bench.run import Row, bench, chosen, format_row, header

__all__ = ["Peaks", "Row", "bench", "chosen", "format_row", "header", "measure_peaks"]
