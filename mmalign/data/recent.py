"""Keeps what was made most recently, up to so many bytes; threads that want the same thing wait for one to make it."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class Recent:
    """budget: bytes kept; the newest is kept even where it alone is larger."""

    def __init__(self, budget: int) -> None:
        self.budget, self.total = budget, 0
        self.kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self.lock = threading.Lock()
        self.making: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, make: Callable[[], tuple[Any, int]]) -> Any:
        """What is kept under a key, or what `make` returns: (the thing, its bytes)."""
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
                return self.kept[key][0]
            own = self.making.setdefault(key, threading.Lock())
        with own:
            with self.lock:
                if key in self.kept:
                    return self.kept[key][0]
            made = make()
            with self.lock:
                self._add(key, *made)
        return made[0]

    def _add(self, key: Hashable, made: Any, size: int) -> None:
        self.kept[key] = (made, size)
        self.total += size
        self.making.pop(key, None)
        while self.total > self.budget and len(self.kept) > 1:
            self.total -= self.kept.popitem(last=False)[1][1]
