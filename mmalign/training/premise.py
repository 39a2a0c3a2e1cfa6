"""BASIC's premise, watched: do the shallow layers turn visual tokens into words more than they were words at first?

The paper's figure 2 shows it for LLaVA-1.5; a language model for which it does not hold is taught worse directions
(arXiv 2508.06895, section 3). A few fixed images are looked at now and then, at every layer.

Letters: B images, Q visual tokens of an image.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from mmalign.io.legible import legible
from mmalign.vlm.batch import Batch
from mmalign.vlm.control import lists
from mmalign.vlm.supervised import Supervised
from mmalign.vlm.vocabulary import among_tokens, word_tokens

IMAGES, TOKENS = 4, 2048  # looked at, at least: shares of a few dozen tokens say little
MARGIN = 0.01  # of shares: less is no difference


def images_of(tokens: int) -> int:
    """How many images are looked at, of so many visual tokens each."""
    return max(IMAGES, TOKENS // tokens)


@dataclass
class Premise:
    """Called after every step; every `every` steps, and at the last of `steps`, it writes a line to premise.jsonl.

    right_BQ: where the data knows what a patch shows, the token ids that would be right, else None. A line holds, for
    `layer 0` (the tokens as the adapter makes them), each layer after it and `refined`, the share of tokens whose
    nearest vocabulary token (cosine) is a word by itself (the proxy for `meaningful`) and, with truth, is right on an
    object. Tokens whose patch is padding are left out; `padding` is their share, where there are any. `ceiling`: the
    share of perfect visual tokens, embeddings of random words in place of these, whose nearest is the one they are:
    where it is low, a layer cannot be read so. It is measured at the first look and at the last.
    """

    model: Supervised
    batch: Batch
    right_BQ: Sequence[Sequence[set[int]]] | None
    place: Path
    every: int
    steps: int
    silent: bool = False  # a rank that takes part and writes nothing
    last: dict[str, dict[str, float]] = field(default_factory=dict)
    looks: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)  # they took
    began: float = field(default_factory=lambda: time.monotonic(), init=False)

    def __call__(self, done: int) -> bool:
        if done % self.every == 0 or done == self.steps:
            before = time.monotonic()
            if done == self.steps or "ceiling" not in self.last:
                ceiling = self.ceiling()
            else:
                ceiling = self.last["ceiling"]
            self.last = {**self.look(), "ceiling": ceiling}
            self.looks, self.seconds = self.looks + 1, self.seconds + time.monotonic() - before
            if not self.silent:
                with open(self.place, "a", encoding="utf-8") as out:
                    out.write(json.dumps({"step": done, **self.last}) + "\n")
        return False  # it never ends a stage

    @torch.no_grad()
    def look(self) -> dict[str, dict[str, float]]:
        with self._evaluating():
            visual_BQD, _ = self.model.see(self.batch)
            assert visual_BQD is not None
            nearest = self._nearest(visual_BQD)
        seen_BQ = self.model.seen(self.batch)
        shares = {"words": {name: self._words(token_BQ[seen_BQ]) for name, token_BQ in nearest.items()}}
        if self.right_BQ is not None:
            shown = zip(self.right_BQ, seen_BQ.tolist(), strict=True)
            right_BQ = [[r if seen else set() for r, seen in zip(*row, strict=True)] for row in shown]
            shares["right"] = {name: _right(token_BQ, right_BQ) for name, token_BQ in nearest.items()}
        if not bool(seen_BQ.all()):
            shares["padding"] = {"layer 0": float((~seen_BQ).float().mean())}
        return shares

    @torch.no_grad()
    def ceiling(self) -> dict[str, float]:
        """Of each layer and of `refined`, the share of perfect visual tokens that is read right."""
        vlm = self.model.vlm
        count = self.batch.images * vlm.tokens
        own_BQ = lists(word_tokens(vlm.llm), count, seed=0).view(-1, vlm.tokens).to(self.batch.ids_RS.device)
        with self._evaluating():
            nearest = self._nearest(vlm.llm.embed(own_BQ))
        return {name: float((token_BQ == own_BQ).float().mean()) for name, token_BQ in nearest.items()}

    def _nearest(self, visual_BQD: Tensor) -> dict[str, Tensor]:
        """{name: token_BQ}: what is nearest to visual tokens, in place of the batch's own, at each layer."""
        model, vlm, batch = self.model, self.model.vlm, self.batch
        with vlm.llm.watched(model.looks, model.places(batch)) as seen:
            seen.kept = []
            vlm.llm(model.embed(batch, visual_BQD), batch.mask_RS)
        states = {"layer 0": visual_BQD, **{f"layer {n}": kept for n, kept in enumerate(seen.kept, 1)}}
        states["refined"] = seen.refined[model.looks[0]]
        with vlm.vocabulary() as embed_VD:
            closest = among_tokens(vlm.llm, embed_VD)
            return {name: closest(state_BQD)[1][..., 0] for name, state_BQD in states.items()}

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was = self.model.training
        self.model.eval()
        yield
        self.model.train(was)

    def _words(self, token_N: Tensor) -> float:
        """The share of tokens that are a word by themselves."""
        chat = self.model.vlm.llm.chat
        tokens = chat.tokenizer.convert_ids_to_tokens(token_N.tolist())
        return sum(map(chat.is_word, tokens)) / max(1, len(tokens))

    def cost(self) -> str:
        """What the looks took of the training's time: a look is a forward pass over at most `images_of` images."""
        share = self.seconds / max(1e-9, time.monotonic() - self.began)
        return (
            f"looks at BASIC's premise: {self.looks}, {self.seconds:.1f} s, {share:.1%} of the training "
            f"(watch_every: {self.every})"
        )

    def remark(self) -> str | None:
        """What a reader must be told where nothing can be said of the premise: perfect tokens are not read either."""
        ceiling = self.last.get("ceiling")
        if not ceiling or legible(ceiling["refined"]):
            return None
        return (
            f"whether BASIC's premise holds cannot be read from nearest tokens here: of perfect visual tokens, "
            f"{ceiling['refined']:.1%} are nearest to the word they are after the shallow layers"
        )

    def warning(self) -> str | None:
        """What a reader must be told when the premise does not hold at the last look.

        Nothing where perfect tokens cannot be read either, nor where these are read as well as perfect ones.
        """
        shares, ceiling = self.last.get("right") or self.last.get("words"), self.last.get("ceiling")
        if not shares or shares["refined"] > shares["layer 0"] + MARGIN or self.remark():
            return None
        if ceiling and shares["refined"] >= ceiling["refined"] - MARGIN:
            return None
        kind = "true words" if "right" in self.last else "words"
        before, after = f"{shares['layer 0']:.1%}", f"{shares['refined']:.1%}"
        return (
            f"BASIC's premise does not hold here: {before} of visual tokens are nearest to {kind} before the language "
            f"model, {after} after its shallow layers; what they are taught is no better than what they are"
        )


def _right(nearest_BQ: Tensor, right_BQ: Sequence[Sequence[set[int]]]) -> float:
    pairs = [
        (token, right)
        for row, rights in zip(nearest_BQ.tolist(), right_BQ, strict=True)
        for token, right in zip(row, rights, strict=True)
        if right
    ]
    return sum(token in right for token, right in pairs) / max(1, len(pairs))
