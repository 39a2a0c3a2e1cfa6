"""The process that looks at a few rows, see sample.py: a line of JSON in for each data set, a line out."""

import json
import signal
import sys
from collections import Counter
from typing import Any

from mmalign.data import Record
from mmalign.errors import CardError, DataError, MMAlignError
from mmalign.io import files
from mmalign.llms import gguf
from mmalign.llms.rendered import Rendered
from mmalign.pipeline.sample import Sample, failed
from mmalign.plan import building
from mmalign.plan.cards import Card, Registry


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: whoever asks says what is to be said
    for line in sys.stdin:
        answer = json.dumps(_sample(json.loads(line)))
        print(answer, flush=True)


def _sample(job: dict[str, Any]) -> Sample:
    if not job["checkpoint"]:
        render = None
    else:
        try:
            if gguf.waiting(job["checkpoint"]):
                raise CardError(f"{job['checkpoint']} is not imported yet", fix="it is where a stage first needs it")
            render = Rendered.of(job["checkpoint"], job["template"], job["tokens"], job["max_length"])
            _ = render.chat.ends  # a template without marks is refused here
        except MMAlignError as err:
            return failed(err, "llm")
    try:
        data = building.build(Card(**job["data"]), registry=Registry(job["registry"]))
    except MMAlignError as err:
        return failed(err, "data")
    sample: Sample = {"rows": len(data), "seen": 0, "bad": 0, "notes": {}}
    notes: Counter[str] = Counter()
    for number in spread(len(data), job["rows"]):
        sample["seen"] += 1
        try:
            record = data[number]
            told = Counter(record.notes) + (render(record) if render else Counter())
            _pictures(data, record)
            notes += told
        except DataError as err:
            sample["bad"] += 1
            sample.setdefault("first", f"{data.id_of(number)}: {err.what}")
            sample.setdefault("fix", err.fix or "")
    return {**sample, "notes": dict(notes.most_common())}


def _pictures(data: Any, record: Record) -> None:
    """Read a record's picture files, where they lie in folders of this machine; Unusable for one that is not there."""
    reader: Any = getattr(data, "reader", None)
    if getattr(reader, "local", False):
        for reference in record.images:
            if isinstance(reference, str) and not files.is_url(reference):
                reader.read(reference)


def spread(size: int, most: int) -> list[int]:
    """Numbers of rows, at most so many, evenly over all of them, the first and the last among them."""
    if size <= most:
        return list(range(size))
    return [round(step * (size - 1) / (most - 1)) for step in range(most)]


if __name__ == "__main__":
    main()
