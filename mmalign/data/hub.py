"""Conversations in a data set of the Hugging Face hub, through the package `datasets`."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmalign.data import cache
from mmalign.data.rows import IMAGES, Rows
from mmalign.data.table import ImageCell, as_row
from mmalign.errors import DataError
from mmalign.io import files


class Hub(Rows):
    """name: of the data set on the hub, or whatever `datasets.load_dataset` takes. split, subset, revision: its own
    words for a part of it and for a version; a folder on this machine has none. Columns as in Table. images: where
    image paths in a column count from. A DataError where it cannot be loaded.
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
        datasets = _library()
        if revision is not None and files.exists(cache.path(name)):
            what = f"revision={revision} cannot apply: {name} is a folder on this machine"
            raise DataError(what, at=name, fix="leave revision= out")
        try:
            dataset = datasets.load_dataset(name, subset, split=split, revision=revision)
        except Exception as err:  # the hub, the network, the builder: each raises its own
            reason = (str(err) or type(err).__name__).splitlines()[0]
            raise DataError(f"cannot load {name!r}: {reason}", at=name, fix="check name, split and network") from err
        for column in IMAGES:
            if column in dataset.column_names:
                dataset = dataset.cast_column(column, _undecoded(datasets, dataset.features[column]))
        self.dataset = dataset
        super().__init__(len(dataset), images, quarantine, at=name)

    def raw(self, row: int) -> Mapping[str, Any]:
        return as_row(dict(self.dataset[row]), row)

    def image_file(self, reference: Any) -> tuple[bytes, str]:
        if not isinstance(reference, ImageCell):
            return super().image_file(reference)
        cell = self.dataset[reference.row][reference.column]
        data, name = super().image_file(cell[reference.index] if isinstance(cell, list) else cell)
        return data, f"row {reference.row}: {name}"


def _undecoded(datasets: Any, feature: Any) -> Any:
    """The same type, with images as {bytes, path}: they are decoded here, like all others."""
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    inner = getattr(feature, "feature", None)
    return type(feature)(_undecoded(datasets, inner)) if inner is not None else feature


def _library() -> Any:
    try:
        import datasets  # 0.6 s, and much else with it
    except ImportError as err:
        raise DataError("data sets of the hub need the package datasets", fix="pip install mmalign[hub]") from err
    return datasets
