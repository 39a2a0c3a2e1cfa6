"""BASIC's premise, watched: do the shallow layers turn visual tokens into words more than they were words at first?

The paper's figure 2 shows it for LLaVA-1.5; a language model for which it does not hold is taught worse directions
(arXiv 2508.06895, section 3). A few fixed images are looked at now and then, at every layer, whether a BASIC objective
is in the loss or not: nothing of the training changes.

Letters: B images, Q visual tokens of an image.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mmalign.benchmarks import ReadoutKind
from mmalign.io import files
from mmalign.io.legible import legible
from mmalign.llms import Look
from mmalign.training.engine import world
from mmalign.training.shallow import Shares, nearest, readouts, shares
from mmalign.vlm.batch import Batch
from mmalign.vlm.control import lists
from mmalign.vlm.readout import Readout
from mmalign.vlm.supervised import Supervised
from mmalign.vlm.vocabulary import token_spellings, word_tokens

IMAGES, TOKENS = 4, 2048  # looked at, at least: shares of a few dozen tokens say little
SHARE = 0.1  # of the training between two looks: where a look takes longer, they become rarer
REMEDY = "   (try watch_readouts: [input, lens])"
MARGIN = 0.01  # of shares: less is no difference


def images_of(tokens: int) -> int:
    """How many images are looked at, of so many visual tokens each."""
    return max(IMAGES, TOKENS // tokens)


@dataclass
class Premise:
    """A watcher: before the first step, every `every` steps and at the last of `steps` it writes a line to
    premise.jsonl.

    right_BQ: where the data knows what a patch shows, the token ids that would be right, else None. A line holds, for
    `layer 0` (the tokens as the adapter makes them), each layer after it and `refined`, the share of tokens whose
    nearest vocabulary token (cosine) is a word by itself (the proxy for `meaningful`) and, with truth, is right on an
    object, in any spelling of its words. Tokens whose patch is padding are left out; `padding` is their share, where
    there are any. `ceiling`: the share of perfect visual tokens, embeddings of random words in place of these, whose
    nearest is the word that they are: where it is low, a layer cannot be read so. It is measured at the first look and
    at the last.

    reads: these shares by each readout; those of `input`, the papers' way, stand in the line itself, others under their
    names. looks: whose layers count as shallow, and as `refined` by the weights of the first; none: what the model's
    objectives look at. `refined` by same-layer is the mean over the layers by these weights, for states of several
    layers have no space to be added up in; all that it reads is a word, so it has no share of words.

    A look takes at most SHARE of the time that is trained between two of them: where it takes longer, `every` is
    doubled, and `say` is told. The first and the last are never left out.
    """

    model: Supervised
    batch: Batch
    right_BQ: Sequence[Sequence[set[int]]] | None
    place: Path
    every: int
    steps: int
    silent: bool = False  # a rank that takes part and writes nothing
    reads: Mapping[ReadoutKind, Readout] = field(default_factory=dict)  # none: input alone
    looks: Sequence[Look] = ()
    say: Callable[[str], None] = lambda _: None
    last: dict[str, Any] = field(default_factory=dict)
    count: int = field(default=0, init=False)  # looks
    seconds: float = field(default=0.0, init=False)  # they took
    judged: int = field(default=0, init=False)  # tokens that a share is of, at the last look
    began: float = field(default_factory=lambda: time.monotonic(), init=False)
    _ended: tuple[int, float, float] | None = field(default=None, init=False)  # step, time, seconds of the last look

    def __post_init__(self) -> None:
        self.taught = bool(self.model.looks)  # whether the tokens are taught what the layers make of them
        self.looks = tuple(dict.fromkeys(replace(look, attention=False) for look in self.looks or self.model.looks))
        self.reads = self.reads or readouts(self.model.vlm, ["input"], max(len(look.weights) for look in self.looks))

    def __call__(self, done: int) -> bool:
        if self._due(done):
            before = time.monotonic()
            ends = done in (0, self.steps)
            ceiling = None if ends else self._known()
            ceiling = self.ceiling() if ceiling is None else ceiling
            looked = time.monotonic()
            self.last = _with(self.look(), ceiling)
            after = time.monotonic()
            self._ended = done, after, after - looked
            self.count, self.seconds = self.count + 1, self.seconds + after - before
            if not self.silent:
                with open(self.place, "a", encoding="utf-8") as out:
                    out.write(json.dumps({"step": done, **self.last}) + "\n")
        return False  # it never ends a stage

    def _due(self, done: int) -> bool:
        if done in (0, self.steps) or done % self.every:
            return done in (0, self.steps)
        every = self._affordable(done)
        if every != self.every:
            self.say(
                f"a look at BASIC's premise takes more than {SHARE:.0%} of {self.every} steps: from now on every "
                f"{every} steps (watch_every: {self.every})"
            )
            self.every = every
        return done % every == 0

    def _affordable(self, done: int) -> int:
        """The interval, doubled until a look takes no more than its share of it; the same on all ranks."""
        every = self.every
        if self._ended is not None and done > self._ended[0]:
            step, at, took = self._ended
            trained = (time.monotonic() - at) / (done - step)
            while took > SHARE * trained * every and every < self.steps:
                every *= 2
        if world()[1] > 1:
            agreed = [every]
            dist.broadcast_object_list(agreed)
            every = agreed[0]
        return every

    def _known(self) -> dict[ReadoutKind, Shares] | None:
        """The ceilings of an earlier look, also where the stage was interrupted since; None: none was measured."""
        last = self.last
        if not last and self.place.exists():
            lines = files.read_jsonl(self.place)
            last = lines[-1] if lines else {}
        each = {kind: last if kind == "input" else last.get(kind, {}) for kind in self.reads}
        own: dict[ReadoutKind, Shares] = {kind: one["ceiling"] for kind, one in each.items() if "ceiling" in one}
        return own if own.keys() == self.reads.keys() else None

    @torch.no_grad()
    def look(self) -> dict[str, Any]:
        """The shares of a line, without ceilings."""
        vlm = self.model.vlm
        with vlm.evaluating():
            visual_BQD, _ = self.model.see(self.batch)
            assert visual_BQD is not None
            tokens_of = nearest(self.model, self.batch, visual_BQD, self.looks, self.reads)
        seen_BQ = self._seen(visual_BQD)
        right_BQ = None
        if self.right_BQ is not None:
            shown = zip(self.right_BQ, seen_BQ.tolist(), strict=True)
            right_BQ = [[r if seen else set() for r, seen in zip(*row, strict=True)] for row in shown]
        self.judged = int(seen_BQ.sum()) if right_BQ is None else sum(map(bool, chain.from_iterable(right_BQ)))
        line, weights = dict[str, Any](), self.looks[0].weights
        for kind, tokens in tokens_of.items():
            own: dict[str, Shares] = {}
            if kind != "same-layer":
                own["words"] = shares(tokens, lambda token_BQ: self._words(token_BQ[seen_BQ]), weights)
            if right_BQ is not None:
                own["right"] = shares(tokens, lambda token_BQ: _right(token_BQ, right_BQ), weights)
            line |= own if kind == "input" else {kind: own}
        if not bool(seen_BQ.all()):
            line["padding"] = {"layer 0": float((~seen_BQ).float().mean())}
        return line

    def _seen(self, visual_BQD: Tensor) -> Tensor:
        """seen_BQ: whether a token's patch shows picture; all of them where a token is no patch."""
        if self.model.vlm.grid is None:
            return torch.ones(visual_BQD.shape[:2], dtype=torch.bool, device=visual_BQD.device)
        return self.model.seen(self.batch)

    @torch.no_grad()
    def ceiling(self) -> dict[ReadoutKind, Shares]:
        """By each readout, of each layer and of `refined`, the share of perfect visual tokens that is read right."""
        vlm = self.model.vlm
        count = self.batch.images * vlm.tokens
        own_BQ = lists(word_tokens(vlm.llm), count, seed=0).view(-1, vlm.tokens).to(self.batch.ids_RS.device)
        with vlm.evaluating():
            tokens_of = nearest(self.model, self.batch, vlm.llm.embed(own_BQ), self.looks, self.reads)
        alike = cache(token_spellings(vlm.llm).alike)

        def share(token_BQ: Tensor) -> float:
            pairs = zip(token_BQ.flatten().tolist(), own_BQ.flatten().tolist(), strict=True)
            return sum(near in alike(own) for near, own in pairs) / own_BQ.numel()

        return {kind: shares(tokens, share, self.looks[0].weights) for kind, tokens in tokens_of.items()}

    def _words(self, token_N: Tensor) -> float:
        """The share of tokens that are a word by themselves."""
        chat = self.model.vlm.llm.chat
        tokens = chat.tokenizer.convert_ids_to_tokens(token_N.tolist())
        return sum(map(chat.is_word, tokens)) / max(1, len(tokens))

    def _chance(self, share: float) -> float:
        """What a share of perfect tokens and one of those judged may differ by: two standard deviations."""
        perfect = self.batch.images * self.model.vlm.tokens
        return max(MARGIN, 2 * math.sqrt(share * (1 - share) * (1 / perfect + 1 / max(1, self.judged or perfect))))

    def cost(self) -> str:
        """What the looks took of the training's time: a look is a forward pass over at most `images_of` images."""
        share = self.seconds / max(1e-9, time.monotonic() - self.began)
        return (
            f"looks at BASIC's premise: {self.count}, {self.seconds:.1f} s, {share:.1%} of the training "
            f"(every {self.every} steps: watch_every)"
        )

    def _last(self) -> dict[str, dict[str, Shares]]:
        """Of the last look, by readout: `words`, `right` and `ceiling`."""
        each = {kind: self.last if kind == "input" else self.last.get(kind, {}) for kind in self.reads}
        return {kind: own for kind, own in each.items() if own.get("right") or own.get("words")}

    def remark(self) -> str | None:
        """What a reader must be told where nothing can be said of the premise: perfect tokens are not read either."""
        ceilings = {kind: own["ceiling"]["refined"] for kind, own in self._last().items() if own.get("ceiling")}
        if not ceilings or any(map(legible, ceilings.values())):
            return None
        several = len(ceilings) > 1
        told = " and ".join(f"{share:.1%}{f' (by {kind})' * several}" for kind, share in ceilings.items())
        return (
            f"whether BASIC's premise holds cannot be read from nearest tokens here: of perfect visual tokens, "
            f"{told} are nearest to the word they are after the shallow layers{REMEDY * ('lens' not in ceilings)}"
        )

    def warning(self) -> str | None:
        """What a reader must be told when the premise does not hold at the last look, by the readout that reads perfect
        tokens best.

        Nothing where perfect tokens cannot be read either, nor where these are read as well as perfect ones, but for
        chance.
        """
        reads = self._last()
        if not reads or self.remark():
            return None
        kind = max(reads, key=lambda kind: reads[kind].get("ceiling", {}).get("refined", 0.0))  # the first of equals
        own, ceiling = reads[kind], reads[kind].get("ceiling")
        read = own.get("right") or own["words"]
        if read["refined"] > read["layer 0"] + MARGIN:
            return None
        if ceiling and read["refined"] >= ceiling["refined"] - self._chance(ceiling["refined"]):
            return None
        what = "true words" if own.get("right") else "words"
        before, after = f"{read['layer 0']:.1%}", f"{read['refined']:.1%}"
        how = "" if kind == "input" else f", read by {kind}"
        taught = "what they are taught" if self.taught else "what BASIC would teach them"
        return (
            f"BASIC's premise does not hold here: {before} of visual tokens are nearest to {what} before the language "
            f"model, {after} after its shallow layers{how}; {taught} is no better than what they are"
        )


def _with(looked: Mapping[str, Any], ceilings: Mapping[ReadoutKind, Shares]) -> dict[str, Any]:
    """A line: shares with the ceiling of each readout beside them."""
    line = dict(looked)
    for kind, ceiling in ceilings.items():
        line |= {"ceiling": ceiling} if kind == "input" else {kind: {**line[kind], "ceiling": ceiling}}
    return line


def _right(nearest_BQ: Tensor, right_BQ: Sequence[Sequence[set[int]]]) -> float:
    pairs = [
        (token, right)
        for row, rights in zip(nearest_BQ.tolist(), right_BQ, strict=True)
        for token, right in zip(row, rights, strict=True)
        if right
    ]
    return sum(token in right for token, right in pairs) / max(1, len(pairs))
