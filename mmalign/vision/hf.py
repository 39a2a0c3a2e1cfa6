"""Vision encoders of transformers: CLIP, SigLIP and SigLIP 2 with their text towers, DINOv2 and DINOv3."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from mmalign.errors import CardError, one_of
from mmalign.io import files, pretrained
from mmalign.vision import FITS, Fit, Frame, Vision, check_pixels, depth, no_text, processor
from mmalign.vision.dense import DENSE, Attention, Dense, alone, available, operated, states_of
from mmalign.vision.picture import fitted, rgb
from mmalign.vision.processor import ResizeCropNormalize, frame_of

if TYPE_CHECKING:
    from PIL.Image import Image

TEXTS = 256  # texts encoded at a time


@dataclass(frozen=True)
class Architecture:
    """How the towers of an architecture differ. Registers, which follow the class token, are in the configuration."""

    norm: str  # the name of the final layer norm
    has_class_token: bool = True  # the first token is no patch
    layer_args: tuple[None, ...] = ()  # what a layer takes behind its input: no attention mask
    interpolate: bool = False  # position embeddings fit another image size only when told to


ARCHITECTURES = {
    "clip_vision_model": Architecture("post_layernorm", layer_args=(None,), interpolate=True),
    "siglip_vision_model": Architecture("post_layernorm", has_class_token=False, layer_args=(None,), interpolate=True),
    "dinov2": Architecture("layernorm"),
    "dinov2_with_registers": Architecture("layernorm"),
    "dinov3_vit": Architecture("norm"),
}


class HFVision(Vision):
    """The vision tower of a transformers checkpoint, read at one of its layers.

    checkpoint: a folder, a `pkg:` folder or a hub id. layer: whose output the patches are, as an index into
    transformers' hidden_states: -1 the last, -2 the one before (LLaVA-1.5). norm: whether the tower's final layer norm
    is applied to it. fit: how a picture becomes a square: crop, its middle; pad, in the middle of a square of the mean
    colour (LLaVA-1.5); squash; None: as the checkpoint's processor does it. image_size: in pixels; None: the size of
    the checkpoint's processor. dense: how patches come into the joint space, see mmalign.vision.dense: plain; value
    (MaskCLIP); surgery (CLIP Surgery), which SigLIP has not: it pools by attention. random: take only the
    configuration, not the weights. frozen: how many of the first layers stay as they are where the encoder is trained,
    embeddings and norms outside of layers with them (ShareGPT4V: half); 0: all learns. pil: images are resized by
    Pillow, as where LLaVA's numbers were published; else by torchvision, transformers' own choice since, in less than
    half the time and up to 2/255 off it.

    A CardError for an architecture that is not known, or a layer, an image size, dense features or frozen layers that
    do not fit.
    """

    fit: Fit
    checkpoints: ClassVar[str] = "transformers"  # `check` reads the config.json of one that is here

    def __init__(
        self,
        checkpoint: str,
        layer: int = -2,
        norm: bool = False,
        fit: Literal["crop", "pad", "squash"] | None = None,
        image_size: int | None = None,
        dense: Literal["plain", "value", "surgery"] = "plain",  # `check` reads no alias
        random: bool = False,
        pil: bool = False,
        frozen: int = 0,
    ) -> None:
        super().__init__()
        one_of("fit", fit, (None, *FITS))
        self.checkpoint, self.norm, self.dense, self.random, self.pil = checkpoint, norm, dense, random, pil
        self.frozen = frozen
        with pretrained.reading(checkpoint):
            self._load(image_size, fit)
        self.depth = depth(layer, self.layers, checkpoint)
        if not 0 <= frozen <= self.depth - 1:
            what = f"frozen is {frozen}, and {checkpoint} is read after {self.depth} layers, of which one must learn"
            raise CardError(what, at="args.frozen", fix=f"frozen: {self.depth // 2}")

    def _load(self, image_size: int | None, fit: Fit | None) -> None:
        """All that is in the checkpoint's files."""
        checkpoint = self.checkpoint
        self.architecture = _architecture(checkpoint)
        model = load(checkpoint, self.random)
        self.tower: Any = getattr(model, "vision_model", model)
        self.project: nn.Module | None = getattr(model, "visual_projection", None)
        self.processor, self.fit = processor.read(checkpoint, image_size, fit, self.pil)
        self.preprocess = ResizeCropNormalize.from_processor(self.processor)
        config = self.tower.config
        self.image_size = processor.side(self.processor, checkpoint)
        self.dim, self.grid = config.hidden_size, (self.image_size // config.patch_size,) * 2
        self.joint = _joint(model)
        available(self.dense, *_ways(self.joint, self.project), checkpoint)
        self.prefix_tokens = self.architecture.has_class_token + getattr(config, "num_register_tokens", 0)
        for noise in ("shift", "jitter", "rescale"):  # of positions in training mode (DINOv3); our images have one size
            setattr(config, f"pos_embed_{noise}", None)
        self._frequencies = [(m, m.inv_freq) for m in self.tower.modules() if hasattr(m, "inv_freq")]  # of RoPE
        self.layers = config.num_hidden_layers
        self._try()

    def _try(self) -> None:
        """Refuse a processor that makes no images for the tower: a mean of four colours, a size that is a word."""
        from PIL import Image  # where `pixels` takes one

        shape = tuple(self.pixels(Image.new("RGB", (2, 2))).shape)
        if shape != (3, self.image_size, self.image_size):
            what = f"the image processor of {self.checkpoint} makes pixels of the shape {shape}"
            raise CardError(what, at=self.checkpoint, fix=f"3 x {self.image_size} x {self.image_size}")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "HFVision":
        """Frequencies stay fp32 when weights are cast, as where transformers loads weights in that precision."""
        plain: Any = super()
        plain._apply(fn, recurse)
        for module, inv_freq in self._frequencies:
            module.inv_freq = inv_freq.to(module.inv_freq.device)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> "HFVision":
        """Of the layers above the frozen ones alone, where there are any."""
        super().requires_grad_(requires_grad)
        if self.frozen:
            self.tower.requires_grad_(False)
            for layer in self._layers()[self.frozen :]:
                layer.requires_grad_(requires_grad)
        return self

    def pixels(self, image: "Image", scale: int = 1) -> Tensor:
        """pixels_3SS, fp32, as the checkpoint's own image processor makes them."""
        image = fitted(rgb(image), self.fit, self.processor.image_mean)
        if self.preprocess:
            return self.preprocess(image, scale)
        sizes = {"size": self.processor.size, **({"crop_size": self.processor.crop_size} if self.fit == "crop" else {})}
        scaled = {name: {key: pixels * scale for key, pixels in dict(size).items()} for name, size in sizes.items()}
        return torch.as_tensor(self.processor(images=image, return_tensors="pt", **scaled)["pixel_values"][0])

    def frame(self, size: tuple[int, int]) -> Frame:
        return frame_of(self.processor, self.fit, size, self.grid, self.image_size, self.tower.config.patch_size)

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """patches_BPC. Layers above the chosen one are not run."""
        return self._patches(self._hidden_states(pixels_B3SS, {self.depth})[self.depth])

    def both(self, pixels_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """patches_BPC and dense_BPJ of one pass."""
        if not self.joint:
            raise no_text(self.checkpoint)
        last = states_of(self.dense, self.layers)
        states = self._hidden_states(pixels_B3SS, {self.depth, *last})
        return self._patches(states[self.depth]), self._dense({number: states[number] for number in last})

    def _hidden_states(self, pixels_B3SS: Tensor, numbers: set[int]) -> dict[int, Tensor]:
        """hidden_BTC after each of these numbers of layers: transformers' hidden_states, no layer too many.

        The tower's own modules are called one by one: hooks (ZeRO-3) and activation checkpointing see ordinary calls,
        and no module has to be taken out or interrupted.
        """
        hidden_BTC, layer_kwargs = self._embed(pixels_B3SS)
        states = {0: hidden_BTC}
        for number, layer in enumerate(islice(self._layers(), max(numbers)), 1):
            hidden_BTC = layer(hidden_BTC, *self.architecture.layer_args, **layer_kwargs)
            if number in numbers:
                states[number] = hidden_BTC
        return states

    def _embed(self, pixels_B3SS: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """hidden_BTC before the first layer, and the keyword arguments of every layer."""
        check_pixels(pixels_B3SS, self.image_size, self.checkpoint)
        pixels_B3SS = pixels_B3SS.to(self.tower.dtype)
        resized = self.image_size != self.tower.config.image_size
        options = {"interpolate_pos_encoding": True} if resized and self.architecture.interpolate else {}
        hidden_BTC = self.tower.embeddings(pixels_B3SS, **options)
        if hasattr(self.tower, "pre_layrnorm"):  # CLIP's, and transformers' spelling
            hidden_BTC = self.tower.pre_layrnorm(hidden_BTC)
        if not hasattr(self.tower, "rope_embeddings"):
            return hidden_BTC, {}
        return hidden_BTC, {"position_embeddings": self.tower.rope_embeddings(pixels_B3SS)}  # DINOv3

    def _layers(self) -> nn.ModuleList:
        return layers(self.tower, self.layers)

    def _patches(self, hidden_BTC: Tensor) -> Tensor:
        patches_BPC = self._drop_prefix(hidden_BTC)
        return self._final_norm(patches_BPC) if self.norm else patches_BPC

    def _drop_prefix(self, hidden_BTC: Tensor) -> Tensor:
        if hidden_BTC.shape[1] != self.prefix_tokens + self.patches:
            grid = " x ".join(map(str, self.grid))
            tokens = hidden_BTC.shape[1]
            raise CardError(f"{self.checkpoint} gives {tokens} tokens, not {self.prefix_tokens} and a grid of {grid}")
        return hidden_BTC[:, self.prefix_tokens :]

    def _final_norm(self, hidden_BPC: Tensor) -> Tensor:
        normed_BPC: Tensor = self.final_norm(hidden_BPC)
        return normed_BPC

    @property
    def final_norm(self) -> nn.Module:
        """The tower's layer norm behind its last layer."""
        norm: nn.Module = getattr(self.tower, self.architecture.norm)
        return norm

    def _dense(self, states: Mapping[int, Tensor]) -> Tensor:
        """dense_BPJ of the hidden states that they are made of."""
        if self.dense == "surgery":
            last_BTC = operated(states, {number: _attention(self._layers()[number]) for number in states})
        else:
            (last_BTC,) = states.values()
        last_BPC = self._drop_prefix(last_BTC)
        if self.dense == "value":
            last_BPC = alone(lambda one_N1C: self._layers()[-1](one_N1C, *self.architecture.layer_args), last_BPC)
        last_BPC = self._final_norm(last_BPC)
        if self.project is not None:  # CLIP pools by taking the class token
            dense_BPJ: Tensor = self.project(last_BPC)
            return dense_BPJ
        return alone(self.tower.head, last_BPC)  # SigLIP pools by attention

    @torch.no_grad()
    def words(self, texts: Sequence[str]) -> Tensor:
        """text_WJ, fp32 unit vectors. The text tower is loaded for this call only."""
        if not self.joint:
            raise no_text(self.checkpoint)
        model = load(self.checkpoint, self.random).eval()
        model.vision_model = nn.Identity()
        model = model.to(device=next(self.parameters()).device, dtype=torch.float32)
        with pretrained.reading(self.checkpoint):
            tokenizer = pretrained.read(self.checkpoint, AutoTokenizer.from_pretrained)
            parts = [texts[start : start + TEXTS] for start in range(0, len(texts), TEXTS)]
            rows = [_pooled(model.get_text_features(_token_ids(tokenizer, model, part))) for part in parts]
        return F.normalize(torch.cat(rows), dim=-1)

    def compile_layers(self) -> bool:
        pretrained.compile_layers(self._layers(), torch.compile, lambda: True)  # frozen ones have no gradients
        return True

    def checkpoint_activations(self) -> None:
        pretrained.recompute(self.tower)

    def identity(self) -> str:
        digest = files.Hashes().of(self.checkpoint)
        name = f"{Path(self.checkpoint).name} {digest[:12]}" if digest else self.checkpoint
        settings = [f"{self.image_size} px", *[self.dense] * (self.dense != "plain")]
        settings += ["pil"] * self.pil
        return ", ".join([name, *settings])

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """The whole checkpoint, text tower included, with this tower's weights in it."""
        state = self.state_dict() if state is None else state
        model = load(self.checkpoint, self.random)
        model.to(torch.promote_types(model.dtype, next(iter(state.values())).dtype))  # fp16 would lose bf16's range
        modules = {"tower": getattr(model, "vision_model", model), "project": getattr(model, "visual_projection", None)}
        for name, module in modules.items():
            own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            if module is not None:
                module.load_state_dict(own)
        write_checkpoint(model, self.checkpoint, folder)


def layers(tower: nn.Module, count: int) -> nn.ModuleList:
    """The transformer layers of a tower that has so many."""
    return next(m for m in tower.modules() if isinstance(m, nn.ModuleList) and len(m) == count)


def _attention(layer: Any) -> Attention:
    """Of a CLIP's layer."""
    attention = layer.self_attn
    values = lambda hidden_BTC: attention.v_proj(layer.layer_norm1(hidden_BTC))  # noqa: E731
    return Attention(values, attention.out_proj, attention.num_heads)


def load(checkpoint: str, random: bool) -> Any:
    """The whole model of a checkpoint, text tower included, or one of its configuration with random weights."""
    if random:
        return AutoModel.from_config(pretrained.read(checkpoint, AutoConfig.from_pretrained))
    return pretrained.whole(checkpoint, AutoModel)


def write_checkpoint(model: Any, source: str, folder: Path) -> None:
    """A model with the processor and tokenizer of the checkpoint it came from."""
    model.save_pretrained(folder)
    for auto_class in (AutoImageProcessor, *([AutoTokenizer] if hasattr(model, "text_model") else [])):
        pretrained.read(source, auto_class.from_pretrained).save_pretrained(folder)


def _architecture(checkpoint: str) -> Architecture:
    config = pretrained.read(checkpoint, AutoConfig.from_pretrained)
    name = getattr(config, "vision_config", config).model_type
    if name == "siglip2_vision_model":
        what = f"{checkpoint} is a NaFlex checkpoint: its grid changes from image to image"
        raise CardError(what, fix="a SigLIP 2 of fixed resolution, such as google/siglip2-so400m-patch14-384")
    if name not in ARCHITECTURES:
        fix = "an encoder of timm or open_clip, or a class of your own; known here: " + ", ".join(ARCHITECTURES)
        raise CardError(f"{checkpoint} is a {name}, which this class does not know", fix=fix)
    return ARCHITECTURES[name]


def _joint(model: Any) -> int:
    """J, or 0 without a text tower."""
    if not hasattr(model, "text_model"):
        return 0
    width = model.visual_projection.out_features if hasattr(model, "visual_projection") else None
    return int(width or model.config.vision_config.hidden_size)  # SigLIP's head keeps the width


def _ways(joint: int, project: nn.Module | None) -> tuple[tuple[Dense, ...], str]:
    """The dense features that a checkpoint has, and what stands in the way of the others."""
    if not joint:
        return (), "has no text tower"
    return (("plain", "value"), "pools by attention, not by its class token") if project is None else (DENSE, "")


def _token_ids(tokenizer: Any, model: Any, texts: Sequence[str]) -> Tensor:
    """ids_WT of some texts, as the text tower was trained on them.

    CLIP reads from left to right: what follows the longest text changes nothing. SigLIP looks both ways without a
    mask and takes the last column: it needs the full length. Both know lower case only, and SigLIP 2's tokenizer
    leaves that to us.
    """
    padding = "longest" if hasattr(model, "text_projection") else "max_length"
    options = {"padding": padding, "padding_side": "right", "truncation": True, "return_tensors": "pt"}
    max_length = model.config.text_config.max_position_embeddings
    ids_WT: Tensor = tokenizer([text.lower() for text in texts], max_length=max_length, **options)["input_ids"]
    return ids_WT.to(model.device)


def _pooled(out: Any) -> Tensor:
    pooled = out if isinstance(out, Tensor) else out.pooler_output
    assert isinstance(pooled, Tensor)
    return pooled.float()
