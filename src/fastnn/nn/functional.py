"""The operators as functions of tensors."""

from fastnn.functional import *
