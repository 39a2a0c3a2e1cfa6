"""From a row's image reference to the bytes of the image file: a path below a root, an archive's member, a URL."""

import errno
import os
import posixpath
import stat
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from mmalign.data import advice, cache, decode, web
from mmalign.data.archives import PACKED_TARS, Archive
from mmalign.data.reasons import Unusable, check_size
from mmalign.errors import DataError
from mmalign.io import files
from mmalign.io.limits import IMAGE_BYTES
from mmalign.io.pictures import SHOWN, of_cell, short

ARCHIVES = (".tar", ".zip", *PACKED_TARS)
LONG = 512  # characters that no image's path has
BASE64 = "an image in base64 begins with data:image/jpeg;base64,"
# Not blocking: a named pipe among the images must not stop the reader for ever
FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class ImageRoot(Protocol):
    """A folder or an archive of images."""

    def read(self, name: str) -> bytes:
        """The bytes of a file; Unusable, with `missing` when it is not here."""
        ...


class ImageReader:
    """images: folders, archives or URLs under which image paths are looked for, the first that has one wins."""

    def __init__(self, images: str | Sequence[str] | None) -> None:
        specs = [images] if isinstance(images, str) else list(images or [])
        self.roots = [_root(spec) for spec in specs]

    @property
    def local(self) -> bool:
        """Whether all pictures lie in folders of this machine, where reading one costs next to nothing."""
        return all(isinstance(root, LocalFolder) for root in self.roots)

    def read(self, reference: Any) -> tuple[bytes, str]:
        """(bytes, a name for messages) of a reference: a path, a URL, base64, bytes, or an object with bytes and path.

        Unusable with the reason.
        """
        with decode.unusable():
            content = of_cell(reference)
        if content is None:
            raise Unusable("shape", f"an image is {short(reference)}, with neither bytes nor path")
        if isinstance(content, bytes):
            return _within_limit(content, _name(reference))
        if files.is_url(content):
            return self._from_url(content), short(content)
        return _within_limit(self._below_roots(content), short(content))

    def _from_url(self, url: str) -> bytes:
        """A row may name a URL below a folder that `images` names, or one of a host that the user allowed."""
        for root in self.roots:
            if isinstance(root, RemoteFolder) and (inside := root.inside(url)):
                return root.read(inside)
        path = advice.path_of_url(url)
        if path is not None or url.lower().startswith("file://"):
            for root in self.roots:
                if path and isinstance(root, LocalFolder) and root.has(path):
                    return root.read(path)
            path = (
                url[len("file://") :] if path is None else path
            )  # file://a.jpg names a host, and somebody meant a.jpg
            what = f"{short(url)} is not below `images`, and of other places only http and https are read"
            raise Unusable("outside", what, at=url, fix=advice.for_path(path, self._folders()))
        return web.fetch(url, [root.url for root in self.roots if isinstance(root, RemoteFolder)])

    def _below_roots(self, path: str) -> bytes:
        for number, root in enumerate(self.roots):
            try:
                return root.read(path)
            except Unusable as err:
                if err.reason not in ("missing", "outside"):
                    raise
                if number == len(self.roots) - 1:
                    fix = err.fix or advice.for_path(path, self._folders())
                    raise Unusable(err.reason, err.detail, at=err.at, fix=fix) from err
        raise Unusable("missing", f"{short(path)}: this data has no image folder", fix="images: FOLDER")

    def _folders(self) -> list[str]:
        """The local folders."""
        return [root.path for root in self.roots if isinstance(root, LocalFolder)]


def _name(reference: Any) -> str:
    """What a picture in a row is called."""
    path = reference.get("path") if isinstance(reference, Mapping) else reference
    return short(path) if isinstance(path, str) else "the image in the row"


def _root(spec: str) -> ImageRoot:
    if spec.lower().endswith(ARCHIVES):
        return Archive(spec)
    if files.is_url(spec):
        return RemoteFolder(spec)
    if not (path := cache.path(spec)).is_dir():
        raise DataError(f"no image folder {spec}", at=str(path.absolute()), fix="check `images` and $MMALIGN_DATA")
    return LocalFolder(str(path))


def _within_limit(data: bytes, name: str) -> tuple[bytes, str]:
    check_size(name, len(data))
    return data, name


class LocalFolder:
    """A local folder. Paths may not leave it; links that the user put into it are followed."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self.real = os.path.realpath(path)

    def read(self, name: str) -> bytes:
        path = self._inside(name)
        try:
            file = os.open(path, FLAGS)
            try:
                status = os.fstat(file)
                if not stat.S_ISREG(status.st_mode):
                    raise Unusable("missing", f"{short(name)} is no file", at=path)
                check_size(name, status.st_size)
                data = os.read(file, status.st_size)
                while len(data) < status.st_size and (rest := os.read(file, status.st_size - len(data))):
                    data += rest  # file systems over a network give it in parts
                return data
            finally:
                os.close(file)
        except (OSError, ValueError) as err:
            raise _unusable(err, name, path) from err

    def has(self, path: str) -> bool:
        """Whether an absolute path lies in this folder."""
        return any(os.path.normpath(path).startswith(root.rstrip(os.sep) + os.sep) for root in (self.path, self.real))

    def _inside(self, name: str) -> str:
        path = os.path.normpath(os.path.join(self.path, name))
        if self.has(path):
            return path
        raise Unusable("outside", f"{short(name)} is not in the image folder", at=self.path)


def _unusable(err: OSError | ValueError, name: str, path: str) -> Unusable:
    if isinstance(err, ValueError):  # a zero byte, or half a surrogate pair
        return Unusable("missing", f"no file can have the name {name[:SHOWN]!a}")
    if err.errno == errno.ELOOP:
        return Unusable("circular", f"{short(name)} is a link that leads back to itself", at=path)
    if err.errno == errno.ENAMETOOLONG:
        return Unusable("missing", f"no file can have the name {short(name)}", fix=BASE64)
    if isinstance(err, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        if len(name) > LONG:
            return Unusable("missing", f"no image {short(name)}", fix=BASE64)
        return Unusable("missing", f"no image {short(name)}", at=path)
    return Unusable("unreadable", f"{short(name)}: {err.strerror or err}", at=path)


class RemoteFolder:
    """A folder behind an fsspec URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def inside(self, url: str) -> str | None:
        """The path below this folder that a whole URL means; None for any other."""
        return url.removeprefix(f"{self.url}/") if url.startswith(f"{self.url}/") and "::" not in url else None

    def read(self, name: str) -> bytes:
        path = posixpath.normpath(name)
        if path.startswith(("/", "..")):
            raise Unusable("outside", f"{short(name)} is not under the image URL", at=self.url)
        return _fetch(f"{self.url}/{path}", name)


def _fetch(url: str, name: str) -> bytes:
    """The bytes behind a URL whose folder the user named."""
    try:
        fs, path = cache.filesystem(url)
        if url.startswith("http"):  # whose servers may send all of a file where a part is asked for
            with fs.open(path, "rb") as source:
                return web.take(source, name)
        return _within_limit(bytes(fs.cat_file(path, start=0, end=IMAGE_BYTES.value + 1)), name)[0]
    except Unusable:
        raise
    except FileNotFoundError as err:
        raise Unusable("missing", f"no image {short(name)}", at=url) from err
    except Exception as err:  # file systems of fsspec raise whatever their libraries do
        raise Unusable("unreadable", f"{short(name)}: {err or type(err).__name__}", at=url) from err
