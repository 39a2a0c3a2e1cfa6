"""What the checkpoints on this machine say of themselves, before anything is loaded: files, sizes, chat templates.

Looked at are cards whose class says `checkpoints = "transformers"`: a folder with a config.json and weights. What lies
on the hub is not fetched.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmalign.errors import CardError, CheckError
from mmalign.io import files, templates
from mmalign.plan import signatures
from mmalign.plan.cards import Card

FOLDER = "a folder with config.json and *.safetensors, or a hub id"
FILES = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")
# fact: what transformers calls it; families that have a name of their own for it have it behind
NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "llms": {
        "dim": ("hidden_size", "n_embd"), "layers": ("num_hidden_layers", "n_layer"),
        "heads": ("num_attention_heads", "n_head"), "kv_heads": ("num_key_value_heads",), "head_dim": ("head_dim",),
        "inner": ("intermediate_size", "n_inner"), "vocab": ("vocab_size",), "tied": ("tie_word_embeddings",),
        "family": ("model_type",),
    },
    "vision": {"dim": ("hidden_size",), "layers": ("num_hidden_layers",)},
    "vlms": {"family": ("model_type",)},
}  # fmt: skip
INSIDE = {"llms": "text_config", "vision": "vision_config"}  # of a configuration of several towers


def folder(card: Card) -> Path | None:
    """The checkpoint of a card of such a class, where it is on this machine; `paths` says it where nothing is there."""
    place = files.local(spec) if (spec := _spec(card)) else None
    return place if place and files.exists(place) else None


def _spec(card: Card) -> str:
    """What a card of such a class names as its checkpoint; empty for others."""
    spec = card.args.get("checkpoint")
    own = signatures.attribute(card.target, "checkpoints") == "transformers"
    return spec if own and isinstance(spec, str) else ""


def broken(card: Card) -> Iterator[CheckError]:
    """What is named as a checkpoint and is none."""
    spec, place = _spec(card), folder(card)
    what = _no_checkpoint(place) if place else ""
    if not files.local(spec) and Path(spec).suffix.lower() in FILES:  # no hub id is called so
        what = "is the name of a file, not a checkpoint's folder"
    if what:
        at = f"{card.path}  args.checkpoint"
        yield CheckError(f"{card.family} {card.name!r}: {spec} {what}", at=at, fix=FOLDER)


def _no_checkpoint(place: Path) -> str:
    """What is wrong with it; empty: nothing."""
    if place.is_file():
        return f"is {_kind(place)}, not a checkpoint's folder"
    if (place / "config.json").is_file():
        return ""
    packed = sorted(place.glob("*.gguf"))
    return f"has no config.json, and a GGUF file, {packed[0].name}" if packed else "has no config.json"


def _kind(place: Path) -> str:
    """A file in a reader's words."""
    with open(place, "rb") as source:
        first = source.read(4)
    known = {b"GGUF": "a GGUF file", b"PK\x03\x04": "a zip file or pickled weights"}
    return known.get(first) or ("weights alone" if place.suffix == ".safetensors" else "a file")


def contradicted(card: Card) -> Iterator[tuple[str, CheckError]]:
    """(fact, error) of the card's facts that the checkpoint's config.json denies."""
    about = _configuration(card)
    for fact, names in NAMES.get(card.family, {}).items():
        told = next((about[name] for name in names if name in about), None)
        if fact in card.facts and told is not None and told != card.facts[fact]:
            what = f"{card.family} {card.name!r}: the card says {fact}: {card.facts[fact]}, "
            what += f"the config.json of {card.args['checkpoint']} {told}"
            yield fact, CheckError(what, at=f"{card.path}  facts.{fact}", fix=f"{fact}: {told}")


def _configuration(card: Card) -> Mapping[str, Any]:
    """The part of config.json that is about a card's tower; empty where there is none."""
    place = folder(card)
    if place is None or not (place / "config.json").is_file():
        return {}
    about = files.read_json(place / "config.json", CheckError, fix="a whole checkpoint")
    inner = about.get(INSIDE.get(card.family, "")) if isinstance(about, dict) else None
    return inner if isinstance(inner, dict) else about if isinstance(about, dict) else {}


def without_weights(card: Card) -> bool:
    """Whether a checkpoint that is here has a configuration alone, so that only random weights can come of it."""
    place = folder(card)
    return bool(place and place.is_dir() and not has_weights(place))


def has_weights(place: Path) -> bool:
    return any(any(place.glob(name)) for name in WEIGHTS)


def template(card: Card, own: str | None) -> tuple[str, str] | None:
    """(what is wrong, what to try) where no answer can be trained in a chat format; None: nothing, or it is not here.

    own: the template of the stage; None: the card's, where its class names checkpoints as ours do, else that of its
    checkpoint.
    """
    spec, place = own or (card.args.get("template") if _spec(card) else None), folder(card)
    if isinstance(spec, str):
        if (path := files.local(spec)) and not files.exists(path):
            return f"template {spec} does not exist", "check the path"
        try:
            text: str | None = templates.text(spec)
        except CardError as err:
            return err.what, err.fix
    elif place and place.is_dir():
        text = templates.of_checkpoint(place)
    else:
        return None
    if text is None:
        fix = "template: mine.jinja beside the card, or pkg:mmalign.llms/templates/chatml.jinja"
        return f"{card.args['checkpoint']} has no chat template", fix
    if templates.marks_answers(text):
        return None
    which = f"template {spec}" if spec and files.local(spec) else f"the chat template of {card.name}"
    return f"{which} marks no answers, so none would be trained", templates.MARKS
