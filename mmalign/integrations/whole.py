"""Any vision-language model of transformers, asked and inspected as a VLM: its own classes, processor and chat format.

    model = mmalign.load("Qwen/Qwen2.5-VL-3B-Instruct")

Answers come from the model's own `generate`, see asking.py. Nothing of the model is copied or changed.

Letters: B images, R rows, S positions, Q visual tokens of an image, D width of the language model, V its vocabulary.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from mmalign.benchmarks import Benchmark, Cut, Question
from mmalign.data import MARK, Turn
from mmalign.errors import CheckError, RunError
from mmalign.integrations import declared, layouts
from mmalign.integrations.asking import Asking, Images
from mmalign.integrations.declared import Parts
from mmalign.integrations.substituted import substituted
from mmalign.llms import LLM, Look, Places, head, watch
from mmalign.llms.chat import Chat
from mmalign.llms.vocabulary import vocabulary_kl
from mmalign.llms.watch import Watch
from mmalign.vision import Frame
from mmalign.vision.picture import rgb
from mmalign.vlm.model import MAX_NEW_TOKENS, VLM
from mmalign.vlm.pictures import listed

if TYPE_CHECKING:
    from PIL.Image import Image

WHOLE = "a whole checkpoint that AutoModelForImageTextToText loads"


class LanguageModel(LLM):
    """The language model inside one, with its head. Texts alone are read here; images through the whole model.

    Its modules stay the whole model's alone: whoever saves, shards or wraps a WholeVLM meets each of them once.
    """

    watchable = True

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self._modules_of = (parts.language_model, parts.head, parts.embeddings)  # a tuple is outside the module tree
        self.dim, self.depth = parts.dim, parts.depth
        self.vocab = len(self.vocabulary())
        self.context = int(getattr(self.body.config, "max_position_embeddings", None) or LLM.context)
        self.keeps_states = watch.final_norm(self.body) is not None
        self.softcap: float | None = getattr(self.body.config, "final_logit_softcapping", None)
        words = parts.tokenizer
        self.chat = Chat("the model", parts.template or "{{ messages[-1].content }}", copy.deepcopy(words))
        self.chat.tokenizer, self.chat.mark = words, parts.image_id  # our own mark, added to the copy, is no token here

    @property
    def body(self) -> Any:
        return self._modules_of[0]

    @property
    def out(self) -> Any:
        return self._modules_of[1]

    @property
    def words(self) -> Any:
        return self._modules_of[2]

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Its own, which are parameters of the whole model, too."""
        own = nn.ModuleDict({"body": self.body, "out": self.out})
        return own.named_parameters(prefix, recurse, remove_duplicate)

    def train(self, mode: bool = True) -> "LanguageModel":
        for module in (self, self.body, self.out):
            nn.Module.train(module, mode)
        return self

    def embed(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.words(ids)
        return embedded

    def forward(self, embeds_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        out = self.body(inputs_embeds=embeds_BSD, attention_mask=(mask_BS > 0).long(), use_cache=False)
        hidden_BSD: Tensor = out.last_hidden_state
        return hidden_BSD

    def head(self, hidden_ND: Tensor) -> Tensor:
        logits_NV: Tensor = self.out(hidden_ND)
        return logits_NV if self.softcap is None else torch.tanh(logits_NV / self.softcap) * self.softcap

    def nll(self, hidden_ND: Tensor, token_N: Tensor, weight_N: Tensor) -> Tensor:
        def loss(own_ND: Tensor, own_VD: Tensor) -> Tensor:
            return head.nll(own_ND, own_VD, token_N, weight_N, self.softcap)

        asked = head.ask(self.out, hidden_ND, loss)
        return super().nll(hidden_ND, token_N, weight_N) if asked is None else asked

    def kl(self, hidden_ND: Tensor, target_ND: Tensor, target_VD: Tensor, weight_N: Tensor) -> Tensor:
        def loss(own_ND: Tensor, own_VD: Tensor) -> Tensor:
            return vocabulary_kl(own_ND, target_ND, weight_N, own_VD, target_VD, self.softcap)

        asked = head.ask(self.out, hidden_ND, loss)
        return super().kl(hidden_ND, target_ND, target_VD, weight_N) if asked is None else asked

    def prepare_looks(self, looks: Sequence[Look]) -> None:
        watch.prepare(self.body, looks)

    def watched(self, looks: Sequence[Look], places: Places) -> AbstractContextManager[Watch]:
        """Of a forward pass of the whole model, too."""
        return watch.watched(self.body, looks, places)

    def keeping(self, layers: Iterable[int]) -> AbstractContextManager[dict[int, Tensor]]:
        """Of a forward pass of the whole model, too."""
        return watch.keeping(self.body, layers)

    def normed(self, hidden_ND: Tensor) -> Tensor:
        norm = watch.final_norm(self.body)
        assert norm is not None
        normed_ND: Tensor = norm(hidden_ND)
        return normed_ND

    def vocabulary(self) -> Tensor:
        embed_VD: Tensor = next(self.words.parameters())  # not `.weight`, see CausalLM.vocabulary
        return embed_VD


class WholeVLM(VLM):
    """A model that AutoModelForImageTextToText loads, and its processor. CheckError for what it does not declare.

    Where its images differ in their number of tokens, what needs as many of each is given one image at a time.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        parts = declared.parts(model, processor)
        super().__init__(None, None, LanguageModel(parts))
        self.whole = model
        self._parts = parts
        self._asking = Asking(parts, self.llm.chat)
        self._tokens = layouts.fixed(parts)

    # What it is

    @property
    def hf_quantizer(self) -> Any:
        """Of transformers, where the model is quantised; else None."""
        return getattr(self.whole, "hf_quantizer", None)

    @property
    def processor(self) -> Any:
        return self._parts.processor

    @property
    def tokens(self) -> int:
        """Q, where every image has as many; else 0."""
        return self._tokens or 0

    @property
    def grid(self) -> tuple[int, int] | None:
        """(rows, columns), where every image has one and the same; None: of tiles, or of any size."""
        views = layouts.views(self._parts, (64, 64), self._tokens) if self._tokens else None
        return views[0].frame.grid if views else None

    def frame(self, size: tuple[int, int]) -> Frame:
        views = layouts.views(self._parts, size, self._tokens) if self._tokens else None
        if not views:
            what = f"the visual tokens of a {self.whole.config.model_type} model are no one grid over a picture"
            raise CheckError(what, at="model", fix="a model with one square, such as LLaVA-1.5, Gemma 3 or PaliGemma")
        return views[0].frame

    def shown(self, image: "Image") -> "Image":
        """A copy of the picture; of one with a grid the part that the grid lies over."""
        picture = rgb(image)
        if self.grid is None:
            return picture.copy()
        width, height = picture.size
        x0, y0, x1, y1 = self.frame(picture.size).region
        return picture.crop((round(x0 * width), round(y0 * height), round(x1 * width), round(y1 * height)))

    # From images to hidden states

    def visual_tokens(self, images: Any) -> Tensor:
        """tokens_BQD of PIL images. Raises CheckError where they differ in number."""
        with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
            return self._seen(images, [0])[0]

    @torch.no_grad()
    def hidden_states(self, images: Any, layers: Sequence[int] | None = None) -> dict[int, Tensor]:
        layers = list(range(self.depth + 1)) if layers is None else list(layers)
        self.check_layers(layers)
        return self._seen(images, layers)

    def _seen(self, images: Any, layers: Sequence[int]) -> dict[int, Tensor]:
        """{layer: hidden_BQD} of images, each alone in a user's turn."""
        if isinstance(images, Tensor):
            raise CheckError("the model reads pictures through its own processor", at="images", fix="PIL images")
        each = [self._of_image(image, layers) for image in listed(images)]
        counts = sorted({len(own[layers[0]]) for own in each}) if each and layers else []
        if len(counts) > 1:
            what = f"the images become {counts[0]} to {counts[-1]} tokens, each as its size is"
            raise CheckError(what, at="images", fix="one image at a time, or images of one size")
        return {layer: torch.stack([own[layer] for own in each]) for layer in layers}

    def _of_image(self, image: "Image", layers: Sequence[int]) -> dict[int, Tensor]:
        """{layer: hidden_QD}"""
        inputs = self._alone(image)
        deep = [layer for layer in layers if layer]
        with declared.entering(self._parts) as entry, declared.layer_outputs(self._parts, deep) as outputs:
            self.whole(**inputs, **self._parts.keep(1), use_cache=False)
        states = {0: entry.embeds_RSD, **outputs}
        return {layer: _at(states[layer], entry.at_RS) for layer in layers}

    def _alone(self, image: "Image") -> dict[str, Any]:
        """The model's inputs of an image alone in a user's turn."""
        return self._asking.inputs([self._asking.prompt([Turn("user", MARK)], 1, ready=False)], [[image]])

    def states(self, tokens_BQD: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """As of tokens in the place of an image's, one behind the other: where a model gives an image's tokens places
        in rows and columns, or lets them see each other, that is left out."""
        ids = torch.tensor(self.before_image(), dtype=torch.long, device=tokens_BQD.device)
        before_BSD = self.llm.embed(ids).expand(len(tokens_BQD), -1, -1).to(tokens_BQD.dtype)
        embeds_BSD = torch.cat([before_BSD, tokens_BQD], 1)
        deep = [layer for layer in layers if layer]
        with declared.layer_outputs(self._parts, deep) as outputs:
            if deep:
                self.llm(embeds_BSD, torch.ones(embeds_BSD.shape[:2], dtype=torch.long, device=embeds_BSD.device))
        return {layer: outputs[layer][:, len(ids) :] if layer else tokens_BQD for layer in layers}

    def before_image(self) -> list[int]:
        text = self._asking.prompt([Turn("user", MARK)], 1, ready=False)
        return self._asking.before(text)

    # Answers

    def ask_about(self, question: str, image: "Image", visual_QD: Tensor, max_new_tokens: int = MAX_NEW_TOKENS) -> str:
        """See `VLM.ask_about`. Raises CheckError as `substituted` does."""
        with substituted(self._parts, visual_QD):
            return self.generate([[Turn("user", f"{MARK}\n{question}")]], [[image]], max_new_tokens)[0]

    def prepared(self, image: "Image") -> Any:
        """The picture itself. Raises DataError for one that the processor refuses."""
        self._alone(image)
        return image

    @torch.no_grad()
    def generate(
        self, conversations: Sequence[Sequence[Turn]], images: Any = None, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> list[str]:
        """The next greedy answer of each conversation, all in one pass; images: PIL images."""
        each = images if images is not None else [()] * len(conversations)
        texts = [self._asking.prompt(turns, len(own)) for turns, own in zip(conversations, each, strict=True)]
        with self.evaluating():
            return [text for text, _ in self._asking.write(texts, each, max_new_tokens)]

    @torch.no_grad()
    def answers(self, bench: Benchmark, questions: Sequence[Question], batch: int) -> Iterator[tuple[Question, str]]:
        """(question, answer): greedy, or the likeliest option; so many a pass, those of like lengths together."""
        if plain := [question for question in questions if question.plain]:  # texts alone
            yield from super().answers(bench, plain, batch)
        kinds: dict[tuple[bool, bool], list[Question]] = {}
        for question in sorted((q for q in questions if not q.plain), key=lambda q: len(q.text)):
            kinds.setdefault((question.image is None, bool(question.options)), []).append(question)
        for (_, choose), own in kinds.items():
            for start in range(0, len(own), batch):
                some = own[start : start + batch]
                asked = [self._asked(bench, question) for question in some]
                texts = self._choose(some, asked, batch) if choose else self._write(asked, bench.max_new_tokens)
                yield from zip(some, texts, strict=True)

    def _asked(self, bench: Benchmark, question: Question) -> tuple[str, Images]:
        """The prompt, and its image."""
        if question.image is None:
            return self._asking.prompt([Turn("user", question.text)], 0), []
        images = [bench.image(question.image)]
        return self._asking.prompt([Turn("user", f"{MARK}\n{question.text}")], 1), images

    def _write(self, asked: Sequence[tuple[str, Images]], most: int) -> list[str]:
        texts, images = zip(*asked, strict=True)
        return [Cut(text) if cut else text for text, cut in self._asking.write(texts, images, most)]

    def _choose(self, questions: Sequence[Question], asked: Sequence[tuple[str, Images]], batch: int) -> list[str]:
        """The likeliest option of each; of equals the first."""
        rows = [(*own, option) for own, q in zip(asked, questions, strict=True) for option in q.options]
        scores: list[float] = []
        for start in range(0, len(rows), batch):
            scores += self._asking.likelihoods(rows[start : start + batch])
        each = iter(scores)
        own = [[next(each) for _ in question.options] for question in questions]
        return [q.options[row.index(max(row))] for q, row in zip(questions, own, strict=True)]


def _at(hidden_RSD: Tensor | None, at_RS: Tensor) -> Tensor:
    assert hidden_RSD is not None
    return hidden_RSD[at_RS]


def read(place: str | Path) -> WholeVLM:
    """The model of a folder, see `loaded`."""
    model, processor = loaded(place)
    return WholeVLM(model, processor)


def loaded(place: str | Path) -> tuple[Any, Any]:
    """(model, processor) of a folder or hub id, in the precision it is stored in. Raises CheckError for a family that
    it cannot serve, before any weight is read, and RunError for what transformers cannot load."""
    source, processor = str(place), hollow(place).processor
    options = {"dtype": "auto", "use_safetensors": True, "output_loading_info": True}
    model, about = _loaded(AutoModelForImageTextToText.from_pretrained, source, **options)
    if lacking := sorted(about["missing_keys"]):  # transformers draws them at random
        what = f"cannot load {source}: it lacks {len(lacking)} weights, such as {lacking[0]}"
        raise RunError(what, at=source, fix=WHOLE)
    return model.eval(), processor


def hollow(place: str | Path) -> Parts:
    """The parts of the model of a folder or hub id, without its weights. Raises as `loaded` does."""
    source = str(place)
    config, processor = _loaded(AutoConfig.from_pretrained, source), _loaded(AutoProcessor.from_pretrained, source)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        what = f"cannot load {source}: a {config.model_type} model is none that answers about images in text"
        raise RunError(what, at=source, fix=WHOLE)
    with torch.device("meta"):
        model = _loaded(lambda _, **options: AutoModelForImageTextToText.from_config(config, **options), source)
    return declared.parts(model, processor)


def _loaded(how: Callable[..., Any], source: str, **options: Any) -> Any:
    try:
        return how(source, trust_remote_code=False, **options)
    except Exception as err:  # every library below it has its own
        reason = (str(err).strip() or type(err).__name__).splitlines()[0]
        raise RunError(f"cannot load {source}: {reason}", at=source, fix=WHOLE) from err
