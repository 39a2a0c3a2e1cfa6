"""Conversations in a data set of the Hugging Face hub, through the package `datasets`."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmalign.data.rows import Rows
from mmalign.data.table import IMAGES, Cell, cells
from mmalign.errors import DataError


class Hub(Rows):
    """name: of the data set on the hub, or whatever `datasets.load_dataset` takes. split, subset, revision: its own
    words for a part of it and for a version. Columns as in Table. images: where image paths in a column count from.
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        subset: str | None = None,
        revision: str | None = None,
        images: str | Sequence[str] | None = None,
        quarantine: str | None = None,
    ) -> None:
        library = _library()
        try:
            found = library.load_dataset(name, subset, split=split, revision=revision)
        except Exception as err:  # the hub, the network, the builder: each raises its own
            said = (str(err) or type(err).__name__).splitlines()[0]
            raise DataError(f"cannot load {name!r}: {said}", at=name, fix="check name, split and network") from err
        for column in IMAGES:
            if column in found.column_names:
                found = found.cast_column(column, _undecoded(library, found.features[column]))
        self.found = found
        super().__init__(len(found), images, quarantine)

    def raw(self, row: int) -> Mapping[str, Any]:
        raw = dict(self.found[row])
        return raw | {key: cells(raw[key], row, key) for key in IMAGES if key in raw}

    def stored(self, reference: Any) -> tuple[bytes, str]:
        if not isinstance(reference, Cell):
            return super().stored(reference)
        found = self.found[reference.row][reference.column]
        data, name = super().stored(found[reference.place] if isinstance(found, list) else found)
        return data, f"row {reference.row}: {name}"


def _undecoded(library: Any, feature: Any) -> Any:
    """The same type, with images as {bytes, path}: they are decoded here, like all others."""
    if isinstance(feature, library.Image):
        return library.Image(decode=False)
    inner = getattr(feature, "feature", None)
    return type(feature)(_undecoded(library, inner)) if inner is not None else feature


def _library() -> Any:
    try:
        import datasets  # 0.6 s, and much else with it
    except ImportError as err:
        raise DataError("data sets of the hub need the package datasets", fix="pip install mmalign[hub]") from err
    return datasets
