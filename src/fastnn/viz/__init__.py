"""Pictures of a training run; matplotlib is imported when one is drawn."""

from fastnn.viz.plots import confusion, confusion_matrix, curves, require_matplotlib

__all__ = ["confusion", "confusion_matrix", "curves", "require_matplotlib"]
