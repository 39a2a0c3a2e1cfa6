"""What a model makes of a record, for `data check`: whether its template takes the turns, and what max_length cuts."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from mmalign.data import Record
from mmalign.data.reasons import Unusable
from mmalign.errors import DataError
from mmalign.llms.chat import Chat

UNLIMITED = 1 << 40  # tokens


@dataclass
class Rendered:
    """Renders records with a model's chat format. tokens: of an image. max_length: None: nothing is cut."""

    chat: Chat
    tokens: int = 1
    max_length: int | None = None

    @classmethod
    def of(cls, checkpoint: str, template: str | None, tokens: int, max_length: int | None) -> "Rendered":
        return cls(Chat(checkpoint, template), tokens, max_length)

    def __call__(self, record: Record) -> Counter[str]:
        """{note: how many}; Unusable where the record cannot be trained on as it is."""
        try:
            encoded = self.chat.fitted(record.turns, [self.tokens] * len(record.images), self.max_length or UNLIMITED)
            return Counter(dict(self._notes(record, encoded.lost)))
        except Unusable:
            raise
        except DataError as err:
            raise Unusable("template", err.what, fix=err.fix) from err

    def _notes(self, record: Record, lost: int) -> Iterator[tuple[str, int]]:
        if lost:
            yield f"rows whose answers are cut at max_length {self.max_length:,}", 1
            yield "trained tokens that are cut away", lost
        for role in self.chat.left_out(record.turns):
            yield f"rows where the chat template leaves out what the {role} says", 1
