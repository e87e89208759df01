"""The pool family: references and cases."""

from __future__ import annotations

from fastnn.reference.case import BadCall, Op

OPS: dict[str, Op] = {}

ERRORS: list[BadCall] = []
