"""Time of every operator, layer and network beside measured peaks and the installed peers."""

from fastnn.bench.page import page
from fastnn.bench.peaks import Peaks, measure_peaks
from fastnn.bench.row import Failure, Row, format_row, header, summaries
from fastnn.bench.run import Options, bench, chosen

__all__ = ["Failure", "Options", "Peaks", "Row", "bench", "chosen", "format_row", "header", "measure_peaks",
           "page", "summaries"]  # fmt: skip
