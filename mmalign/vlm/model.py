"""The composed model: vision encoder, adapter and language model as one; visual tokens stand among the words.

Letters: B images, S positions of R rows (samples), P patches, C their width, Q visual tokens of an image, D width of
the language model, V its vocabulary, K kept (top_k).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.adapters import Adapter
from mmalign.benchmarks import Benchmark, Question, ReadoutKind
from mmalign.data import MARK, Turn
from mmalign.errors import CheckError, StageError
from mmalign.llms import LLM, Look, Places
from mmalign.objectives import Words
from mmalign.vision import Frame, Vision
from mmalign.vision.picture import upright_size
from mmalign.vlm import attention, meaningful, nearest, replacement
from mmalign.vlm.batch import IGNORED, Sample, collate
from mmalign.vlm.meaningful import Meaning
from mmalign.vlm.pictures import listed, shown
from mmalign.vlm.prefix import Group, Pass
from mmalign.vlm.readout import ceilings
from mmalign.vlm.replacement import QUESTION, Replaced
from mmalign.vlm.vocabulary import token_spellings
from mmalign.vlm.wordmap import WordMap

if TYPE_CHECKING:
    from PIL.Image import Image

PARTS = ("vision", "adapter", "llm")
TEXTS = 32  # texts a pass when perplexity is measured
MAX_NEW_TOKENS = 128


class VLM(nn.Module):
    """What is trained, asked, inspected and saved.

    vision and adapter may both be None: a language model alone. The parts are shared, not copied; nothing here changes
    their modes (train, eval) or which of them learn, but `train` and `freeze_all_but`.
    """

    def __init__(self, vision: Vision | None, adapter: Adapter | None, llm: LLM) -> None:
        super().__init__()
        self.vision, self.adapter, self.llm = vision, adapter, llm
        self.trained: tuple[str, ...] = PARTS
        # the model as it was before any training here, where that is known; built when it is asked for
        self.untrained: Callable[[], VLM] | None = None

    @property
    def device(self) -> torch.device:
        return next(self.llm.parameters()).device

    @property
    def grid(self) -> tuple[int, int] | None:
        """(rows, columns) of the visual tokens; None where a token is no patch."""
        return self.adapter.grid if self.adapter is not None and self.adapter.keeps_grid else None

    @property
    def tokens(self) -> int:
        """Q: visual tokens of an image."""
        return self.adapter.tokens if self.adapter is not None else 0

    @property
    def depth(self) -> int:
        """Layers of the language model at which `hidden_states` can look; 0 where it shows none."""
        return self.llm.depth if self.llm.watchable else 0

    def frame(self, size: tuple[int, int]) -> Frame:
        """Where visual tokens lie in an upright picture of (width, height); CheckError where they are no patches."""
        vision, _ = self._seeing()
        if self.grid is None:
            what = f"the visual tokens of {type(self.adapter).__name__} are no patches"
            raise CheckError(what, at="adapter", fix="an adapter that keeps the grid")
        return replace(vision.frame(size), grid=self.grid)

    def frames(self, images: "Image | Sequence[Image]") -> list[Frame]:
        """The frame of each PIL image."""
        return [self.frame(upright_size(image)) for image in listed(images)]

    def shown(self, image: "Image") -> "Image":
        """The picture as the encoder is given it, see `pictures.shown`."""
        return shown(self._seeing()[0], image)

    # Training: which parts learn

    def parameters_of(self, part: str) -> list[nn.Parameter]:
        """Of one of PARTS; none where the model has it not."""
        own: nn.Module | None = getattr(self, part)
        return [] if own is None else list(own.parameters())

    def freeze_all_but(self, trained: Iterable[str]) -> None:
        """Only these parts learn; the others stay in eval mode whatever `train` says."""
        self.trained = tuple(trained)
        if "llm" in self.trained:
            self.llm.prepare_training()
        for name in PARTS:
            if (part := getattr(self, name)) is not None:
                part.requires_grad_(name in self.trained)
        self.train(self.training)

    def train(self, mode: bool = True) -> "VLM":
        super().train(mode)
        for name in PARTS:
            if (part := getattr(self, name)) is not None and name not in self.trained:
                part.eval()
        return self

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode for as long as the `with` lasts; afterwards every module is in the mode it was in."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    # From images and token ids to hidden states

    def pixels(self, images: "Image | Sequence[Image]") -> Tensor:
        """pixels_B3SS of PIL images, prepared as the encoder was trained, on the model's device."""
        vision, _ = self._seeing()
        return torch.stack([vision.pixels(image) for image in listed(images)]).to(self.device)

    def inputs(
        self, conversations: Sequence[Sequence[Turn]], images: "Sequence[Sequence[Image]] | None" = None
    ) -> dict[str, Tensor]:
        """A batch to train on, named as transformers names it, on the model's device.

        images: of each conversation, a PIL image for every image mark in its turns, in their order. input_ids,
        attention_mask, labels: (R, S), padded on the right; the mark's id once for every visual token, labels -100 but
        where an answer is. pixel_values: pixels_B3SS in the order of the marks; picture_sizes: (B, 2), height and width
        of each upright picture; neither is there without images. Raises
        DataError where marks and images differ in number, CardError for a chat template that marks no answers.
        """
        each = images if images is not None else [()] * len(conversations)
        rows = [[self._sample(turns, own)] for turns, own in zip(conversations, each, strict=True)]
        batch = collate(rows, self.llm.chat).to(self.device)
        labels_RS = batch.ids_RS.masked_fill(batch.weight_RS == 0, IGNORED)
        inputs = {"input_ids": batch.ids_RS, "attention_mask": batch.mask_RS, "labels": labels_RS}
        if batch.pixels_B3SS is None:
            return inputs
        sizes = [upright_size(image)[::-1] for own in each for image in own]
        return {**inputs, "pixel_values": batch.pixels_B3SS, "picture_sizes": torch.tensor(sizes, device=self.device)}

    def _sample(self, turns: Sequence[Turn], images: "Sequence[Image]") -> Sample:
        encoded = self.llm.chat.encode(turns, [self.tokens] * len(images))
        pixels = [self._seeing()[0].pixels(image) for image in images]
        return Sample("", encoded.ids, encoded.weights, pixels)

    def visual_tokens(self, images: "Tensor | Image | Sequence[Image]") -> Tensor:
        """tokens_BQD of PIL images or of pixels_B3SS, as the adapter makes them, in its precision.

        With a gradient to whatever learns while the model is in training mode, without one in eval mode.
        """
        pixels_B3SS = images if isinstance(images, Tensor) else self.pixels(images)
        with nullcontext() if self.training else torch.no_grad():
            return self.encode(pixels_B3SS)[0]

    def encode(self, pixels_B3SS: Tensor, joint: bool = False) -> tuple[Tensor, Tensor | None]:
        """tokens_BQD and, with `joint`, dense_BPJ: the same patches in the encoder's joint space with text."""
        vision, adapter = self._seeing()
        with nullcontext() if "vision" in self.trained else torch.no_grad():
            patches_BPC, dense_BPJ = vision.both(pixels_B3SS) if joint else (vision(pixels_B3SS), None)
        weight = next(adapter.parameters(), next(self.llm.parameters()))
        return adapter(patches_BPC.to(weight.dtype)), dense_BPJ

    def embed(self, ids_RS: Tensor, tokens_BQD: Tensor | None = None) -> Tensor:
        """embeds_RSD: words as the language model embeds them, visual tokens where the image marks stand.

        The marks of a picture are as many ids `llm.chat.mark` as it has tokens, row by row in the order of the
        pictures. Raises StageError where places and tokens differ in number, or tokens and words in width.
        """
        at_RS = ids_RS == self.llm.chat.mark
        embeds_RSD = self.llm.embed(ids_RS.masked_fill(at_RS, 0))
        if tokens_BQD is None:
            return embeds_RSD
        if (places := int(at_RS.sum())) != (tokens := tokens_BQD.shape[0] * tokens_BQD.shape[1]):
            what = f"{places} places for visual tokens, {tokens} tokens: the adapter's count is not what it declared"
            raise StageError(what)
        if (wide := tokens_BQD.shape[-1]) != (width := embeds_RSD.shape[-1]):
            what = f"the adapter's visual tokens have {wide} numbers, the language model's words {width}"
            raise StageError(what, fix="give `llm_dim` numbers a token in forward(); check_adapter tests it")
        rows, columns = torch.where(at_RS)
        return embeds_RSD.index_put((rows, columns), tokens_BQD.flatten(0, 1).to(embeds_RSD.dtype))

    def forward(self, ids_RS: Tensor, mask_RS: Tensor | None = None, pixels_B3SS: Tensor | None = None) -> Tensor:
        """logits_RSV. mask_RS: n at the positions of a row's nth sample, 0 at padding; None: rows without padding."""
        tokens_BQD = None if pixels_B3SS is None else self.encode(pixels_B3SS)[0]
        hidden_RSD = self.llm(self.embed(ids_RS, tokens_BQD), torch.ones_like(ids_RS) if mask_RS is None else mask_RS)
        return self.llm.head(hidden_RSD.flatten(0, 1)).view(*ids_RS.shape, -1)

    def places(self, ids_RS: Tensor, mask_RS: Tensor, images: int) -> Places:
        """Where the tokens of each of so many images stand, and where text is."""
        at_RS = ids_RS == self.llm.chat.mark
        rows, columns = (index.view(images, -1) for index in torch.where(at_RS))
        return Places(rows[:, 0], columns, (mask_RS > 0) & ~at_RS)

    @torch.no_grad()
    def hidden_states(
        self, images: "Tensor | Image | Sequence[Image]", layers: Sequence[int] | None = None
    ) -> dict[int, Tensor]:
        """{layer: hidden_BQD} of the visual tokens of images, each alone in a user's turn; no gradient.

        layers: 0, as the adapter makes them; i, hidden_states[i] of transformers, the last behind the final norm.
        None: all. What is said behind an image cannot change it, so nothing is. Raises CheckError for a layer that
        there is not, and for layers of a language model that shows none.
        """
        layers = list(range(self.depth + 1)) if layers is None else list(layers)
        self.check_layers(layers)
        return self.states(self.encode(images if isinstance(images, Tensor) else self.pixels(images))[0], layers)

    def states(self, tokens_BQD: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """{layer: hidden_BQD} of visual tokens, each image's alone in a user's turn; see `hidden_states`."""
        states = {0: tokens_BQD}
        if any(layers):
            ids = [*self.before_image(), *[self.llm.chat.mark] * tokens_BQD.shape[1]]
            ids_RS = torch.tensor(ids, device=tokens_BQD.device).expand(len(tokens_BQD), -1)
            states |= self.watch(ids_RS, torch.ones_like(ids_RS), tokens_BQD, max(layers))
        return {layer: states[layer] for layer in layers}

    def before_image(self) -> list[int]:
        """The token ids in front of an image that a user's turn begins with."""
        ids = self.llm.chat.prompt([Turn("user", f"{MARK}\n")], [1])
        return ids[: ids.index(self.llm.chat.mark)]

    def watch(self, ids_RS: Tensor, mask_RS: Tensor, tokens_BQD: Tensor, deepest: int) -> dict[int, Tensor]:
        """{layer: hidden_BQD}, from layer 1 to the deepest, of the visual tokens in rows of ids."""
        look = Look(weights=(1.0,) * deepest, attention=False)
        with self.llm.watched([look], self.places(ids_RS, mask_RS, len(tokens_BQD))) as seen:
            seen.kept = []
            self.llm(self.embed(ids_RS, tokens_BQD), mask_RS)
        return dict(enumerate(seen.kept, 1))

    def check_layers(self, layers: Sequence[int]) -> None:
        """A CheckError for a layer that there is not, or that the language model does not show."""
        for layer in layers:
            if layer and not self.llm.watchable:
                what = f"{type(self.llm).__name__} shows none of its layers"
                raise CheckError(what, at="layers", fix="layer 0, what the adapter makes")
            if not 0 <= layer <= self.llm.depth:
                fix = f"0 (what the adapter makes) to {self.llm.depth}"
                raise CheckError(f"no layer {layer}: the language model has {self.llm.depth}", at="layers", fix=fix)

    def _seeing(self) -> tuple[Vision, Adapter]:
        if self.vision is None or self.adapter is None:
            raise CheckError("this model has no vision encoder", fix="VLM(vision, adapter, llm) with all three parts")
        return self.vision, self.adapter

    # Words

    @contextmanager
    def vocabulary(self) -> Iterator[Tensor]:
        """embed_VD, the input embedding matrix; under ZeRO-3 gathered for as long as the `with` lasts."""
        embed_VD = self.llm.vocabulary()
        if not hasattr(embed_VD, "ds_id"):
            yield embed_VD
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters([embed_VD]):
            yield embed_VD

    def word_embeddings(self, words: Sequence[str]) -> Words:
        """Words as the language model spells them; `[word_N]` gives text_ND, the mean of each word's pieces (SEA, 4.2).

        A word it makes nothing of has no piece, and is never drawn as a label.
        """
        pieces = self.pieces(words)
        longest = max(map(len, pieces), default=0)
        return Words(list(words), torch.tensor([ids + [-1] * (longest - len(ids)) for ids in pieces]), self.llm.embed)

    def pieces(self, words: Sequence[str]) -> list[list[int]]:
        """The token ids each word has inside a sentence; empty where the tokenizer makes nothing of it."""
        unknown = self.llm.chat.tokenizer.unk_token_id  # says nothing, and the same of every word it stands for
        spelled = self.llm.chat.pieces(list(words)) if words else []  # a tokenizer refuses no texts
        return [[] if unknown in ids else ids for ids in spelled]

    def spellings(self, words: Sequence[str]) -> list[list[int]]:
        """The token ids that speak of each word: its pieces, and tokens that are the word in another spelling, see
        `Spellings`; of several words, of each of them."""
        known = token_spellings(self.llm)
        each = zip(words, self.pieces(words), strict=True)
        return [sorted({*ids, *(i for part in word.split() for i in known.of(part))}) for word, ids in each]

    def nearest_tokens(
        self, images: "Tensor | Image | Sequence[Image]", layers: Sequence[int] = (0,), top_k: int = 1,
        readout: ReadoutKind = "input",
    ) -> dict[int, tuple[Tensor, Tensor]]:  # fmt: skip
        """{layer: (cosine_BQK, token_BQK)}: the vocabulary tokens nearest to each visual token at each layer.

        Rows of the embedding matrix that no token has are left out, as is the image mark's. readout: how the language
        model's layers are read, see readout.py and `ceilings`. Raises CheckError for no top_k.
        """
        return nearest.by_layer(self, images, None, layers, top_k, readout)

    def nearest_listed(
        self, images: "Tensor | Image | Sequence[Image]", words: Sequence[str], layers: Sequence[int] = (0,),
        top_k: int = 1, readout: ReadoutKind = "input",
    ) -> dict[int, tuple[Tensor, Tensor]]:  # fmt: skip
        """{layer: (cosine_BQK, word_BQK)}: the words of a list nearest to each visual token, by their numbers in it.

        A word is the mean of its pieces' embeddings, as in SEA (section 4.2). One that stands there twice has its first
        number; one the tokenizer makes nothing of is never near. Raises CheckError for no top_k, and for no word.
        """
        return nearest.by_layer(self, images, words, layers, top_k, readout)

    def ceilings(
        self, layers: Sequence[int], readout: ReadoutKind = "input", words: Sequence[str] | None = None
    ) -> dict[int, float]:
        """{layer: the share of perfect visual tokens that a readout reads right there}, each the embedding of a word,
        of a list or of the vocabulary. Below a half the layer cannot be read so, whatever it gives of images.
        """
        return ceilings(self, nearest.reading(self, readout, layers, words, 1))

    def nearest_perfect(
        self, number_BQ: Tensor, layers: Sequence[int], words: Sequence[str] | None = None,
        readout: ReadoutKind = "input",
    ) -> dict[int, Tensor]:  # fmt: skip
        """{layer: number_BQ}: what is nearest at each layer to perfect visual tokens, the embeddings of these tokens,
        or of these words of a list, in the place of the visual tokens of B images."""
        return nearest.perfect(self, number_BQ, words, layers, readout)

    def nearest_words(
        self, images: "Image | Sequence[Image]", layers: Sequence[int] = (0,), top_k: int = 5,
        names: Sequence[str] | None = None, words: Sequence[str] | None = None, readout: ReadoutKind = "input",
    ) -> WordMap:  # fmt: skip
        """What visual tokens say: the `top_k` nearest vocabulary tokens of each, as text with its cosine.

        images: PIL images. layers: see `hidden_states`. names: of the images; None: their numbers. words: the nearest
        of these words instead, see `nearest_listed`; None: of all single tokens. readout: of a hidden state the nearest
        input embedding (input, the papers' way), the nearest state of a word there (same-layer), or the word whose
        state the layer's lens, a linear model of it, expects nearest (lens). The result says of each layer how much of
        perfect visual tokens is read right so; it draws itself in a notebook, is saved as a page, and turns into a
        DataFrame.
        """
        return nearest.word_map(self, images, layers, top_k, names, words, readout)

    def meaningful(
        self, images: "Image | Sequence[Image]", layers: Sequence[int] = (0,), names: Sequence[str] | None = None,
        words: Sequence[str] | None = None, readout: ReadoutKind = "input",
    ) -> list[Meaning]:  # fmt: skip
        """How many of the visual tokens of each image mean something at each layer, by the rule of meaningful.py, and
        how many would that have no meaning. Image by image, and of each the layers in the order asked for.

        layers, names, words, readout: as in `nearest_words`, and so are the errors.
        """
        return meaningful.meaningful(self, images, layers, names, words, readout)

    def attention(self, images: "Image | Sequence[Image]", text: str, layers: int | None = None) -> Tensor:
        """share_BQ: how much a text about images looks at each visual token, sum 1 (BASIC, arXiv 2508.06895, eq. 5); in
        layers 1 .. `layers`, None: half of them. For `WordMap.with_attention`; see vlm/attention.py."""
        return attention.attention(self, images, text, layers)

    def replaced(
        self, images: "Image | Sequence[Image]", question: str = QUESTION, layers: Sequence[int] = (0,),
        names: Sequence[str] | None = None, words: Sequence[str] | None = None, readout: ReadoutKind = "input",
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> list[Replaced]:  # fmt: skip
        """What the model says of images, and what of the words nearest to their visual tokens, which stand in their
        place (BASIC, arXiv 2508.06895, figures 3 and 9); beside it a control, other words. Image by image, and of each
        the layers in the order asked for.

        question: put to each image alone, answered greedily. layers, names, words, readout: as in `nearest_words`; of a
        layer behind the first, its words stand in front of the language model. Raises CheckError as that does, and for
        a list of which no word is left for the control.
        """
        return replacement.replaced(self, images, question, layers, names, words, readout, max_new_tokens)

    @torch.no_grad()
    def perplexity(self, texts: Sequence[str]) -> float:
        """exp of the mean loss per token over texts without images or chat format, begun as `Chat.plain` says."""
        chat, total, tokens = self.llm.chat, 0.0, 0.0
        for start in range(0, len(texts), TEXTS):
            spelled = (chat.plain(text) for text in texts[start : start + TEXTS])
            rows = [row for row in spelled if len(row) > 1]  # of one token alone nothing is predicted
            if not rows:
                continue
            longest = max(map(len, rows))
            ids_RS = torch.tensor([row + [chat.pad] * (longest - len(row)) for row in rows], device=self.device)
            mask_RS = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self.device)
            hidden_RSD = self.llm(self.llm.embed(ids_RS), mask_RS)
            real_RS = mask_RS[:, 1:] > 0
            logits_NV = self.llm.head(hidden_RSD[:, :-1][real_RS]).float()
            total += float(F.cross_entropy(logits_NV, ids_RS[:, 1:][real_RS], reduction="sum"))
            tokens += int(real_RS.sum())
        return float(torch.tensor(total / max(1.0, tokens)).exp())

    # Answers

    def answers(self, bench: Benchmark, questions: Sequence[Question], batch: int) -> Iterator[tuple[Question, str]]:
        """(question, answer) of a benchmark's questions, so many a pass; see vlm/answering.py."""
        from mmalign.vlm.answering import answers  # it knows this module

        return answers(self, bench, questions, batch)

    def ask(
        self, questions: str | Sequence[str], images: "Image | Sequence[Image] | None" = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> Any:  # fmt: skip
        """The greedy answer to a question, or the answers to several: as `mmalign eval` would give them.

        images: one picture that all questions are about, one for each question, or None. A str for a str, else a list.
        """
        texts = [questions] if isinstance(questions, str) else list(questions)
        pictures = images if images is None or not isinstance(images, Sequence) else list(images)
        if isinstance(pictures, list) and len(pictures) != len(texts):
            what = f"{len(texts)} questions and {len(pictures)} images"
            raise CheckError(what, at="images", fix="one image for all questions, or one for each")
        from mmalign.vlm.answering import Asking  # it knows this module

        asking = Asking(texts, pictures, max_new_tokens)
        with self.evaluating():
            by_id = {question.id: text for question, text in self.answers(asking, asking.questions(), batch=32)}
        replies = [by_id[str(n)] for n in range(len(texts))]
        return replies[0] if isinstance(questions, str) else replies

    def ask_about(self, question: str, image: "Image", visual_QD: Tensor, max_new_tokens: int = MAX_NEW_TOKENS) -> str:
        """The greedy answer to a question about an image, with other visual tokens in the place of its own, as many."""
        return self.generate([[Turn("user", f"{MARK}\n{question}")]], [[visual_QD]], max_new_tokens)[0]

    def prepared(self, image: "Image") -> Any:
        """A PIL image as `generate` takes it again and again: its visual_QD."""
        return self.visual_tokens(image)[0]

    @torch.no_grad()
    def generate(
        self,
        conversations: Sequence[Sequence[Turn]],
        images: "Sequence[Sequence[Image | Tensor]] | None" = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> list[str]:
        """The next greedy answer of each conversation, all in one pass.

        images: of each conversation, a PIL image or visual_QD for every image mark in its turns, in their order.
        """
        each = images if images is not None else [()] * len(conversations)
        with self.evaluating():
            groups = [
                group for turns, own in zip(conversations, each, strict=True) for group in self.groups(turns, own)
            ]
            return [self.llm.chat.text(ids) for ids in Pass(self.llm, groups).write(max_new_tokens)]

    def groups(
        self, turns: Sequence[Turn], images: "Sequence[Image | Tensor]" = (), more: Sequence[int] = ()
    ) -> list[Group]:
        """The prompt of a conversation, with token ids behind it, as `Pass` reads it."""
        visual = [image if isinstance(image, Tensor) else self.visual_tokens(image)[0] for image in images]
        ids = [*self.llm.chat.prompt(turns, [len(visual_QD) for visual_QD in visual]), *more]
        visual_QD = torch.cat(visual).to(self.device) if visual else None
        return Group.of([ids], visual_QD, self.llm.chat.mark)


def nearest_words(
    model: VLM, images: "Image | Sequence[Image]", layers: Sequence[int] = (0,), top_k: int = 5,
    names: Sequence[str] | None = None, words: Sequence[str] | None = None, readout: ReadoutKind = "input",
) -> WordMap:  # fmt: skip
    """`model.nearest_words(...)`: what the visual tokens of images say, at any layer."""
    return model.nearest_words(images, layers, top_k, names, words, readout)
