"""Ranges of bytes of one large file, local or remote, from several threads at once."""

import os
import weakref
from typing import IO, Any, cast

from mmalign.data import cache
from mmalign.data.reasons import Unusable
from mmalign.io import files


class Ranges:
    """A file opened for reading anywhere in it. Local: pread. Remote: a request for the range."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.key = cache.identity(spec)
        self.remote: tuple[Any, str] | None = cache.filesystem(spec) if files.is_url(spec) else None
        if not self.remote:
            self.file = os.open(cache.path(spec), os.O_RDONLY)
            weakref.finalize(self, os.close, self.file)

    def read(self, start: int, end: int) -> bytes:
        """The bytes from start to end; fewer at the end of the file. Unusable when they cannot be read."""
        try:
            if self.remote:
                fs, inside = self.remote
                return bytes(fs.cat_file(inside, start=start, end=end))
            return os.pread(self.file, end - start, start)
        except Exception as err:  # file systems of fsspec raise whatever their libraries do
            raise Unusable("unreadable", f"{self.spec}: {err or type(err).__name__}", at=self.spec) from err

    def open(self) -> IO[bytes]:
        """The whole file, for what is read once from its beginning."""
        return cast(IO[bytes], files.open_(self.spec if self.remote else str(cache.path(self.spec))))
