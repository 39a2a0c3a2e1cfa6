"""A cache of the values last used, up to so many bytes; threads that want the same one wait for one to load it."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class LRUCache:
    """budget: bytes of values that are kept; the newest is kept even where it alone is larger."""

    def __init__(self, budget: int) -> None:
        self.budget, self.total = budget, 0
        self.entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self.lock = threading.Lock()
        self.loading: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, load: Callable[[], tuple[Any, int]]) -> Any:
        """The value of a key; where it is not there, what `load` returns: (the value, its bytes)."""
        with self.lock:
            if key in self.entries:
                self.entries.move_to_end(key)
                return self.entries[key][0]
            key_lock = self.loading.setdefault(key, threading.Lock())
        with key_lock:
            with self.lock:
                if key in self.entries:
                    return self.entries[key][0]
            value, size = load()
            with self.lock:
                self._add(key, value, size)
        return value

    def _add(self, key: Hashable, value: Any, size: int) -> None:
        self.entries[key] = (value, size)
        self.total += size
        self.loading.pop(key, None)
        while self.total > self.budget and len(self.entries) > 1:
            self.total -= self.entries.popitem(last=False)[1][1]
