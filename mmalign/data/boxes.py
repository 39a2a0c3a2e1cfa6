"""Pictures in which people drew boxes around things: COCO, Visual Genome, and what is written in their layouts.

Letters: N pictures, R records.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmalign.data import Truth, cache
from mmalign.data.boxfiles import Drawn, read_captions, read_coco, read_visual_genome
from mmalign.data.regions import read_aliases
from mmalign.data.rows import Rows
from mmalign.errors import DataError
from mmalign.io.pictures import orientation

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmalign.vision import Frame


class Boxed(Rows):
    """A record for each picture of which anything can be said: its caption, or the names of what is in it, the largest
    first. `truth` says what each patch shows.

    captions: {picture's id: caption}. images: where the pictures' files count from.
    """

    def __init__(
        self, path: str, drawn: Drawn, captions: Mapping[int, str], images: str | Sequence[str] | None,
        quarantine: str | None,
    ) -> None:  # fmt: skip
        self.drawn, self.captions = drawn, captions
        has_caption_N = np.fromiter((int(id_) in captions for id_ in drawn.id_N), bool, len(drawn.id_N))
        self.picture_R = np.flatnonzero(has_caption_N | drawn.regions.named())
        if not len(self.picture_R):
            raise DataError("no picture has a box with a name", at=path, fix="another file; is it of this layout?")
        # Of each picture as it is stored: EXIF's orientation, width, height; 0: nobody looked yet
        self.stored_N3 = np.zeros((len(drawn.id_N), 3), np.int32)
        super().__init__(len(self.picture_R), images or cache.parent(path), quarantine)

    def raw(self, row: int) -> Mapping[str, Any]:
        number = int(self.picture_R[row])
        id_ = int(self.drawn.id_N[number])
        caption = self.captions.get(id_) or ", ".join(self.drawn.regions.said(number))
        return {"id": id_, "image": self.drawn.files[number], "caption": caption}

    def reference(self, row: int, image: Any) -> int:
        return int(self.picture_R[row])

    def image_file(self, reference: int) -> tuple[bytes, str]:
        return super().image_file(self.drawn.files[reference])

    def image(self, reference: int) -> "Image":
        picture = super().image(reference)
        self.stored_N3[reference, 1:] = picture.size
        self.stored_N3[reference, 0] = orientation(picture)
        return picture

    def truth(self, reference: int, frame: "Frame") -> Truth:
        """What each patch of a frame shows, see `Regions.truth`; a DataError where boxes and picture do not fit.

        Boxes are of the picture as it is stored, as COCO's are, and are turned upright with it; only where the width
        and height beside them are those of the upright picture, they are of that. A picture may be a smaller or larger
        copy of the one that was drawn into.
        """
        if not self.stored_N3[reference, 0]:
            self.image(reference)
        turn, *stored = map(int, self.stored_N3[reference])
        size = stored if self.drawn.size_N2 is None else self.drawn.size_N2[reference].tolist()
        if not _alike(size, stored):
            if turn < 5 or not _alike(size, stored[::-1]):
                what = f"its boxes are of {size[0]} x {size[1]} pixels, and it has {stored[0]} x {stored[1]}"
                fix = "images: the pictures that were drawn into"
                raise DataError(f"{self.drawn.files[reference]}: {what}", fix=fix)
            turn = 1
        return self.drawn.regions.truth(reference, (size[0], size[1]), turn, frame)


def _alike(size: Sequence[int], other: Sequence[int]) -> bool:
    """Whether a picture of one size may be a copy of one of the other, its sides rounded to whole pixels."""
    return abs(size[0] * other[1] - size[1] * other[0]) <= sum(size)


class CocoBoxes(Boxed):
    """COCO's `instances_*.json`, and what others write in its layout: images, annotations with bbox, categories.

    path: .json or .json.gz, local or an fsspec URL. images: a folder, an archive, or several, below which a `file_name`
    lies; None: the folder of the file. captions: COCO's `captions_*.json` of these pictures, of which a record says the
    first; None: it says the categories. aliases: groups of words that mean the same, see `read_aliases`; without, a
    patch of a dog shows a `dog`, neither `dogs` nor a `puppy`, and one of a traffic light a `traffic light`.
    quarantine: a file that `mmalign data check --quarantine` wrote.

    The file is read once and never held: instances_train2017 (118,287 pictures, 860,001 boxes) takes 20 s
    and 150 MB.
    """

    def __init__(
        self, path: str, images: str | Sequence[str] | None = None, captions: str | None = None,
        aliases: str | None = None, quarantine: str | None = None,
    ) -> None:  # fmt: skip
        drawn = read_coco(path, read_aliases(aliases) if aliases else {})
        said = read_captions(captions) if captions else {}
        if captions and said.keys().isdisjoint(drawn.id_N.tolist()):
            what = f"the captions are of other pictures than {path}"
            raise DataError(what, at=captions, fix="captions of the same split, or none")
        super().__init__(path, drawn, said, images, quarantine)


class VisualGenomeBoxes(Boxed):
    """Visual Genome's `objects.json`: a list of image_id and objects, each with names, x, y, w, h.

    path: .json or .json.gz, local or an fsspec URL. images: folders or archives with `<image_id>.jpg` in one of them;
    None: the folder of the file. aliases: groups of words that mean the same, such as its object_alias.txt, see
    `read_aliases`. quarantine: a file that `mmalign data check --quarantine` wrote.
    """

    def __init__(
        self, path: str, images: str | Sequence[str] | None = None, aliases: str | None = None,
        quarantine: str | None = None,
    ) -> None:  # fmt: skip
        drawn = read_visual_genome(path, read_aliases(aliases) if aliases else {})
        super().__init__(path, drawn, {}, images, quarantine)
