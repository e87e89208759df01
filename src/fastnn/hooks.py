"""Handles of hooks: what registering one returns."""

from __future__ import annotations

from typing import Any


class RemovableHandle:
    """What registering a hook returns: :meth:`remove` takes the hook off again."""

    def __init__(self, hooks: list[Any], hook: Any) -> None:
        self._hooks, self._hook = hooks, hook

    def remove(self) -> None:
        """Takes the hook off; a second time does nothing."""
        if self._hook in self._hooks:
            self._hooks.remove(self._hook)
