"""Chat templates: jinja text, or a file with it; the name of a file is never taken for the text."""

import re
from pathlib import Path

from mmalign.errors import CardError
from mmalign.io import files, limits, whole

ANSWER = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")  # begins what a template marks as an answer
MARKS = "put {% generation %} ... {% endgeneration %} around the answer in the template"
AT = "args.template"
FILE = "./mine.jinja beside the file that names it, or pkg:mmalign.llms/templates/qwen2.jinja"


def marks_answers(text: str) -> bool:
    return ANSWER.search(text) is not None


def text(spec: str) -> str:
    """The jinja text that a spec is, or that stands in the file it means; a CardError where it is neither."""
    place = files.local(spec)
    if place is None and "{" not in spec:
        raise CardError(f"template {spec!r} is neither a file nor jinja", at=AT, fix=FILE)
    return spec if place is None else _read(place)


def _read(place: Path) -> str:
    try:
        return whole.read(str(place), limits.SETTINGS_BYTES, CardError).decode("utf-8")
    except (OSError, UnicodeDecodeError) as err:
        what = f"cannot read the chat template {place}: {getattr(err, 'strerror', None) or err}"
        raise CardError(what, at=AT, fix="a file of jinja, or its text") from err


def of_checkpoint(folder: Path) -> str | None:
    """The chat template of a checkpoint's own tokenizer, as transformers finds it; None: it has none.

    "" for several of them by name: none marks answers for every conversation.
    """
    if (own := folder / "chat_template.jinja").is_file():
        return _read(own)
    if not (place := folder / "tokenizer_config.json").is_file():
        return None
    about = files.read_json(place, CardError)
    template = about.get("chat_template") if isinstance(about, dict) else None
    return template if template is None or isinstance(template, str) else ""
