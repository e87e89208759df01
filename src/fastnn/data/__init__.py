"""Data sets in memory, batches of them, and light augmentation; NumPy only."""

from fastnn.data.dataset import ArrayDataset, batches
from fastnn.data.digits import CLASSES, digits
from fastnn.data.transforms import random_affine, resize

__all__ = ["CLASSES", "ArrayDataset", "batches", "digits", "random_affine", "resize"]
