"""Optimizers and learning rate schedules, with PyTorch's names and defaults."""

from fastnn.optim import lr_scheduler as lr_scheduler
from fastnn.optim.optimizer import Optimizer
from fastnn.optim.optimizers import SGD, Adadelta, Adagrad, Adam, AdamW, RMSprop

#: Optimizers by lower-case name, for command lines.
OPTIMIZERS = {cls.__name__.lower(): cls for cls in (SGD, Adam, AdamW, Adagrad, RMSprop, Adadelta)}
