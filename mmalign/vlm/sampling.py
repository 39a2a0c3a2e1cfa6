"""What a label source may look at of the data before its first label: captions, and the features of some images."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from mmalign.data import Data
from mmalign.errors import DataError
from mmalign.vision import Vision
from mmalign.vision.picture import upright_size


def captions(data: Data) -> Iterator[str]:
    """Of every record that can be read; the others are met again, counted and listed, when they are labelled."""
    for number in range(len(data)):
        try:
            yield data[number].caption
        except DataError:
            continue


def spread(data: Data, count: int) -> range:
    """The numbers of so many records, spread evenly over the data."""
    stride = max(1, len(data) // max(1, count))
    return range(0, stride * min(count, len(data)), stride)


@torch.no_grad()
def sample(encoder: Vision, data: Data, images: int) -> list[tuple[Tensor, str]]:
    """(dense_PJ, caption) of images spread evenly over the data; of the patches that show picture."""
    samples: list[tuple[Tensor, str]] = []
    device = next(encoder.parameters()).device
    for number in spread(data, images):
        try:
            record = data[number]
            pictures = [data.image(reference) for reference in record.images]
            pixels = [encoder.pixels(picture) for picture in pictures]
        except DataError:
            continue
        dense_BPJ: Iterable[Tensor] = encoder.both(torch.stack(pixels).to(device))[1] if pixels else []
        for picture, dense_PJ in zip(pictures, dense_BPJ, strict=True):
            samples.append((dense_PJ[encoder.frame(upright_size(picture)).seen()], record.caption))
    return samples
