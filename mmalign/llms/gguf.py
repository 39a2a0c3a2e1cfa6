"""Language models out of GGUF files, as folders that transformers loads and saves.

transformers reads such files, but what it made of one it cannot save, and texts it splits by the rules of some models
alone. So the weights go into a model made afresh, and the tokenizer splits texts as the file says.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Regex, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from mmalign.errors import CardError
from mmalign.io import cache, files, packaged, pretrained, templates
from mmalign.llms import formats
from mmalign.llms.lora import plain

log = logging.getLogger(__name__)
VERSION = 1  # of what is written; raised where that changes
FIX = "a whole GGUF file of a language model that transformers knows"
# How byte-level vocabularies split texts, by llama.cpp's names (llama-vocab.cpp, `tokenizer.ggml.pre`)
REST = r"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _by(pattern: str) -> Any:
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bytes_])


def _one_after_another(*patterns: str) -> Any:
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


SPLITS: dict[str, Any] = {
    "default": _one_after_another(
        r"[\p{P}\$\+<=>\^~\|]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
        r"\p{N}+",
        r"[0-9][0-9][0-9]",
    ),
    "gpt-2": GPT2,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]),
    "llama-bpe": _by(WORDS + REST.format(digits=r"\p{N}{1,3}")),
    "qwen2": _by(WORDS + REST.format(digits=r"\p{N}")),
}


def place(checkpoint: str) -> str:
    """A checkpoint as transformers is to be given it: for `gguf:PACKAGE` a folder of the cache, made once.

    A CardError where there is no such package, or no such model in it, and for a GGUF file itself.
    """
    if checkpoint.endswith(packaged.ENDING) and files.local(checkpoint):
        fix = f"mmalign import {checkpoint} DIR, and `checkpoint: ./DIR`"
        raise CardError(f"{checkpoint} is a GGUF file, and no checkpoint's folder", at=checkpoint, fix=fix)
    if not checkpoint.startswith(packaged.PREFIX):
        return checkpoint
    folder = cached(checkpoint)
    if not folder.is_dir():
        log.info("%s is imported, once, into %s", checkpoint, folder)
        try:
            write(packaged.readable(checkpoint), folder)
        except OSError:
            if not folder.is_dir():  # else another process was quicker
                raise
        cache.added(folder)
    cache.used(folder)
    return str(folder)


def waiting(checkpoint: str) -> bool:
    """Whether a checkpoint is `gguf:PACKAGE`, and not imported yet."""
    return checkpoint.startswith(packaged.PREFIX) and not cached(checkpoint).is_dir()


def cached(checkpoint: str) -> Path:
    """Where the model of `gguf:PACKAGE` lies once it is imported."""
    source = packaged.file(checkpoint)
    digest = packaged.recorded(source)
    if digest is None:
        with open(source, "rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return files.cache("models") / hashlib.sha256(f"{VERSION} {digest}".encode()).hexdigest()[:32]


def write(source: Path, target: Path, template: str | None = None) -> str | None:
    """A GGUF file as a checkpoint folder: weights dequantised, tokenizer, chat template. Whole or not at all.

    template: jinja text; None: the file's own, and ours where that marks the answers of the same format. Returns it.
    Raises CardError for what is no GGUF file, is a part of one, or is of a model that transformers does not know.
    """
    source = source.absolute()
    with files.made(target) as beside, _reading(source):
        fields = _fields(source)
        words = _tokenizer(source, fields)
        _weights(source, beside)
        words.chat_template = template or _template(words, source)
        words.save_pretrained(beside)
    own: str | None = words.chat_template
    return own


@contextmanager
def _reading(source: Path) -> Iterator[None]:
    """As `pretrained.reading`, with what to try for a file of this kind."""
    try:
        with pretrained.reading(str(source)):
            yield
    except CardError as err:
        reason = err.what.partition(": ")[2] if err.what.startswith("cannot load ") else ""
        what = f"cannot import {source}: {reason}" if reason else err.what
        raise CardError(what, at=str(source), fix=FIX if err.fix == pretrained.FIX else err.fix) from err


def _fields(source: Path) -> dict[str, Any]:
    """What the file says of itself, the few things asked for here."""
    with open(source, "rb") as opened:
        if opened.read(4) != packaged.MAGIC:
            fix = "a file that begins with the letters GGUF; a pointer of Git LFS has to be fetched"
            raise CardError(f"{source} is no GGUF file", at=str(source), fix=fix)
    if source.suffix != packaged.ENDING:  # by which transformers knows it
        raise CardError(f"{source} must end in {packaged.ENDING}", at=str(source), fix=f"{source}{packaged.ENDING}")
    packaged.reader(str(source))
    from gguf import GGUFReader

    fields = GGUFReader(source).fields
    names = ("split.count", "tokenizer.ggml.model", "tokenizer.ggml.pre")
    told = {name: fields[name].contents() for name in names if name in fields}
    if (parts := int(told.get("split.count", 1))) > 1:
        fix = "all in one file: llama-gguf-split --merge"
        raise CardError(f"{source} is one of {parts} parts of a model", at=str(source), fix=fix)
    return told


def _weights(source: Path, folder: Path) -> None:
    lm = pretrained.whole(str(source.parent), AutoModelForCausalLM, gguf_file=source.name)
    fresh, weights = plain(lm.config), lm.state_dict()
    shapes = {name: weight.shape for name, weight in fresh.state_dict().items()}
    if shapes != {name: weight.shape for name, weight in weights.items()}:
        what = f"transformers keeps weights of {source.name} quantised: they cannot be trained"
        raise CardError(what, at=str(source), fix=FIX)
    fresh.save_pretrained(folder, state_dict=weights)


def _tokenizer(source: Path, fields: dict[str, Any]) -> Any:
    words = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    if fields.get("tokenizer.ggml.model") != "gpt2":  # the others have no such rule
        return words
    rule = fields.get("tokenizer.ggml.pre", "default")
    if rule not in SPLITS:
        what = f"{source.name} splits texts by {rule!r}, a rule that is not known here"
        raise CardError(what, at=str(source), fix=f"a file with one of {', '.join(SPLITS)}; or the model from its hub")
    words.backend_tokenizer.pre_tokenizer = SPLITS[rule]
    if rule == "llama-bpe":
        words.backend_tokenizer.model.ignore_merges = True  # a word of the vocabulary is one token, as in Llama 3
    return words


def _template(words: Any, source: Path) -> str | None:
    own: str | None = words.chat_template
    like = None if not own or templates.marks_answers(own) else formats.ours(own, words.special_tokens_map, source.name)
    return like.read_text(encoding="utf-8") if like else own
