"""A tokenizer and its chat template as plain transformers uses them, and the marked template beside them.

The template alone begins a text: the tokenizer adds no begin token, so that there is one however a prompt comes to be,
and none where the template has none. `{% generation %}` is transformers' own tag, which jinja2 does not know.
"""

import copy
import json
import re
from pathlib import Path
from typing import Any

from tokenizers import processors

from mmalign.data import MARK
from mmalign.errors import CardError
from mmalign.io import files, limits, whole
from mmalign.llms.chat import PLAIN_BEGIN, Chat

MARKED = "chat_template.jinja.marked"  # a name that nobody who looks for *.jinja takes for the template itself
TAG = re.compile(r"\{%([-+]?)\s*((?:end)?generation)\s*([-+]?)%\}")
PARTS_OF = '{%- for part in m.content -%}{{- "<image>\\n" if part.type == "image" else part.text -}}{%- endfor -%}'
# A processor is given `content` as a list of parts; the tokenizers' templates want text.
TEXTS = (
    "{%- set read = namespace(turns=[]) -%}{%- for m in messages -%}"
    "{%- if m.content is string -%}{%- set text = m.content -%}{%- else -%}{%- set text -%}"
    + PARTS_OF
    + "{%- endset -%}{%- endif -%}"
    '{%- set read.turns = read.turns + [{"role": m.role, "content": text}] -%}{%- endfor -%}'
    "{%- set messages = read.turns -%}"
)
ADDS = (processors.TemplateProcessing, processors.BertProcessing, processors.RobertaProcessing)


def template(chat: Chat) -> str:
    """The chat template for texts and for lists of parts, without marks; comments in their place keep its blanks."""
    return TAG.sub(r"{#\1 \2 \3#}", TEXTS + (chat.template or ""))


def finish(folder: Path, chat: Chat) -> None:
    """What transformers does not write into a folder: the template with its marks, for trainers that mask by them and
    for `marked`; that no begin token is added, for those who do not read post-processors; and the ids that
    plain texts (perplexity, MMLU) begin with."""
    if chat.marks_answers:
        files.write(folder / MARKED, TEXTS + (chat.template or ""))
    place = folder / "tokenizer_config.json"
    silent = {"add_bos_token": False, "add_eos_token": False, PLAIN_BEGIN: chat.begin}
    about = json.loads(place.read_text(encoding="utf-8")) | silent
    files.write(place, json.dumps(about, indent=2, ensure_ascii=False) + "\n")


def marked(folder: Path) -> str | None:
    """The template that an exported folder was made with; None for a folder that does not have it."""
    place = folder / MARKED
    if not place.is_file():
        return None
    try:
        return whole.read(str(place), limits.SETTINGS_BYTES, CardError).decode("utf-8").removeprefix(TEXTS)
    except (OSError, UnicodeDecodeError) as err:
        what = f"cannot read the chat template {place}: {getattr(err, 'strerror', None) or err}"
        raise CardError(what, at=str(place), fix="export it again, or --template FILE") from err


def tokenizer(chat: Chat) -> Any:
    """A copy of the tokenizer that adds no token by itself, pads on the left, and has a token to pad with."""
    words = copy.deepcopy(chat.tokenizer)
    words.chat_template = template(chat)
    words.padding_side = words.init_kwargs["padding_side"] = "left"  # an answer begins right behind its prompt
    words.pad_token = pad(chat)
    for name in ("_add_bos_token", "_add_eos_token"):  # of which transformers makes a post-processor of its own
        if hasattr(words, name):
            setattr(words, name, False)
    words.backend_tokenizer.post_processor = _adding_none(words.backend_tokenizer.post_processor)
    return words


def _adding_none(post: Any) -> Any:
    """A post-processor without the steps that add tokens."""
    steps: Any = post if isinstance(post, processors.Sequence) else [post]
    kept = [step for step in steps if step is not None and not isinstance(step, ADDS)]
    nothing = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    return processors.Sequence([*kept, nothing])


def pad(chat: Chat) -> str | None:
    """The token to pad with: the tokenizer's own, or what it has for unknown letters, or an end; never the mark.

    None where it has no such token: one of its ordinary ones would vanish from texts.
    """
    words = chat.tokenizer
    own = [token for token in (words.pad_token, words.unk_token, words.eos_token) if token is not None]
    special = [t.content for i, t in sorted(words.added_tokens_decoder.items()) if t.special and i in chat.ends]
    return next((str(token) for token in (*own, *special) if str(token) != MARK), None)


def pad_id(chat: Chat) -> int | None:
    return None if (token := pad(chat)) is None else int(chat.tokenizer.convert_tokens_to_ids(token))
