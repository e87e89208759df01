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
from fastnn.functional.pad import *
from fastnn.functional.pool import *
from fastnn.functional.reduce import *
from fastnn.functional.shape import *
from fastnn.functional.softmax import *
from fastnn.functional.view import *


def _explain() -> None:
    """Puts :func:`explained` around every public function of the families."""
    import sys

    from fastnn.functional.explain import explained

    here = sys.modules[__name__]
    families = {module for name, module in sys.modules.items() if name.startswith(__name__ + ".")}
    for module in families:
        for name in getattr(module, "__all__", ()):
            wrapped = explained(getattr(module, name))
            setattr(module, name, wrapped)
            if hasattr(here, name):
                setattr(here, name, wrapped)


_explain()
