"""Exported models that plain transformers has no class for: a folder that loads where mmalign is installed.

from mmalign.vlm.folder import MMAlignModel
model = MMAlignModel.from_pretrained(folder)
model.generate("What is this?", image)
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mmalign.adapters import Adapter
from mmalign.benchmarks import Benchmark, Question
from mmalign.data import Turn
from mmalign.errors import RunError
from mmalign.io import files
from mmalign.llms import LLM
from mmalign.plan import cards
from mmalign.plan.cards import Card
from mmalign.vision import Vision
from mmalign.vlm.answering import Asked
from mmalign.vlm.prefix import Group, Pass

FORMAT = 1
ROLES = ("vision", "adapter", "llm")  # of the cards that every such folder has
AGAIN = "export it again"


def save(folder: Path, vision: Vision, adapter: Adapter, llm: LLM, given: Mapping[str, Card]) -> None:
    """vision/, llm/, adapter.safetensors and mmalign.json, which names the classes that read them."""
    folder.mkdir(parents=True)
    vision.save(folder / "vision")
    llm.save(folder / "llm")
    write(folder, adapter, given)


def write(folder: Path, adapter: Adapter, given: Mapping[str, Card]) -> None:
    """adapter.safetensors and mmalign.json, into a folder that has vision/ and llm/."""
    weights = {name: value.detach().cpu().contiguous() for name, value in adapter.state_dict().items()}
    save_file(weights, folder / "adapter.safetensors")
    roles = ("vision", "vision.encoder", "adapter", "llm")
    named = {role: asdict(given[role]) for role in roles if role in given}
    named["adapter"]["args"].pop("checkpoint", None)  # what it began with
    about = {"format": FORMAT, "cards": named}
    files.write_json(folder / "mmalign.json", about)


def build(given: Mapping[str, Card], place: Path | None = None) -> tuple[Vision, Adapter, LLM]:
    """The parts that cards name; `place`: with the checkpoints of that folder. The adapter is new."""
    eye = _vision(given, place and place / "vision")
    mouth: LLM = cards.build(_at(given["llm"], place and place / "llm"))
    adapter: Adapter = cards.build(given["adapter"], patch_dim=eye.dim, llm_dim=mouth.dim, grid=eye.grid)
    return eye, adapter, mouth


class MMAlignModel(nn.Module):
    """vision, adapter and llm of an exported folder, ready to answer."""

    def __init__(self, vision: Vision, adapter: Adapter, llm: LLM) -> None:
        super().__init__()
        self.vision, self.adapter, self.llm = vision, adapter, llm

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype | None = None) -> "MMAlignModel":
        """A folder that `save` wrote. Raises RunError for anything else, CardError for a part that is damaged."""
        place = Path(folder)
        model = cls(*build(_cards(place / "mmalign.json"), place)).eval()
        _fill(model.adapter, place / "adapter.safetensors")
        return model if dtype is None else model.to(dtype)

    def generate(self, prompts: str | Sequence[str], image: Any = None, max_new_tokens: int = 128) -> list[str]:
        """Greedy answers to questions about one image (a PIL image), or about none."""
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        bench = _Asking(image, max_new_tokens)
        questions = [Question(str(n), text, None if image is None else 0) for n, text in enumerate(texts)]
        found = {question.id: text for question, text in self._asked().answers(bench, questions, batch=32)}
        return [found[str(n)] for n in range(len(texts))]

    @torch.no_grad()
    def see(self, image: Any) -> torch.Tensor:
        """visual_QD: the visual tokens of a PIL image."""
        return self._asked().visual([image])[0]

    @torch.no_grad()
    def reply(self, turns: Sequence[Turn], images: Sequence[torch.Tensor] = (), max_new_tokens: int = 128) -> str:
        """The next answer of a conversation. images: visual_QD of each mark in the turns, in their order."""
        chat, asked = self.llm.chat, self._asked()
        ids = chat.prompt(turns, [len(visual_QD) for visual_QD in images])
        visual_QD = torch.cat(list(images)).to(asked.device) if images else None
        made = Pass(asked.lm, Group.of([ids], visual_QD, chat.mark), chat.mark, chat.pad)
        return chat.text(made.write(self.llm.head, chat.ends, max_new_tokens)[0])

    def _asked(self) -> Asked:
        return Asked(self.vision, self.adapter, self.llm, next(self.llm.parameters()).device)


class _Asking(Benchmark):
    def __init__(self, image: Any, most: int) -> None:
        self.shown = image
        self.max_new_tokens = most  # type: ignore[misc]

    def image(self, reference: Any) -> Any:
        return self.shown


def _cards(place: Path) -> dict[str, Card]:
    """The cards in a mmalign.json."""
    about = files.read_json(place, fix=AGAIN)
    found = about.get("format") if isinstance(about, dict) else None
    if found != FORMAT:
        what = f"exported in format {found!r}; this mmalign reads {FORMAT}"
        raise RunError(what, at=str(place.parent), fix=AGAIN)
    try:
        given = {role: Card(**card) for role, card in about["cards"].items()}
        return {role: given[role] for role in (*ROLES, *given)}
    except (KeyError, TypeError, AttributeError) as err:
        what = f"mmalign.json is damaged: {type(err).__name__}: {err}"
        raise RunError(what, at=str(place), fix=AGAIN) from err


def _fill(adapter: Adapter, place: Path) -> None:
    """Put the weights of a file into an adapter, in the precision they are stored in."""
    try:
        weights = load_file(place)
        adapter.to(next((value.dtype for value in weights.values()), None)).load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError) as err:
        what = f"cannot read the adapter {place}: {' '.join(str(err).split())}"
        raise RunError(what, at=str(place), fix=AGAIN) from err


def _at(card: Card, place: Path | None) -> Card:
    return card if place is None else replace(card, args={**card.args, "checkpoint": str(place)})


def _vision(given: Mapping[str, Card], place: Path | None) -> Vision:
    card = given["vision"]
    if "vision.encoder" in given:
        inner = cards.build(_at(given["vision.encoder"], place))
        args = {k: v for k, v in card.args.items() if k != "encoder"}
        wrapped: Vision = cards.build(replace(card, args=args), encoder=inner)
        return wrapped
    made: Vision = cards.build(_at(card, place))
    return made
