"""The operators as functions of tensors; public as ``fastnn.nn.functional``."""

# One line per family: star imports take exactly what the family's __all__ lists.
from fastnn.functional import optim as optim
from fastnn.functional.activation import *
from fastnn.functional.conv import *
from fastnn.functional.dropout import *
from fastnn.functional.elementwise import *
from fastnn.functional.interpolate import *
from fastnn.functional.loss import *
from fastnn.functional.matmul import *
from fastnn.functional.norm import *
from fastnn.functional.pool import *
from fastnn.functional.reduce import *
from fastnn.functional.shape import *
from fastnn.functional.softmax import *
from fastnn.functional.view import *
