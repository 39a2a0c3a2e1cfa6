"""Vision encoders of transformers: CLIP, SigLIP and SigLIP 2 with their text towers, DINOv2 and DINOv3."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from mmalign.errors import CardError, one_of
from mmalign.io import files, pretrained
from mmalign.vision import Vision, check_pixels, depth, no_text
from mmalign.vision.alone import alone
from mmalign.vision.picture import middle, rgb, square
from mmalign.vision.processor import Steps

if TYPE_CHECKING:
    from PIL.Image import Image

TEXTS = 256  # texts encoded at a time


@dataclass(frozen=True)
class Kind:
    """How the towers of one architecture differ. Registers, which follow the class token, are in the configuration."""

    norm: str  # the name of the final layer norm
    classed: bool = True  # the first token is no patch
    mask: tuple[None, ...] = ()  # a layer takes an attention mask behind its input
    stretch: bool = False  # position embeddings fit another image size only when told to


KINDS = {
    "clip_vision_model": Kind("post_layernorm", mask=(None,), stretch=True),
    "siglip_vision_model": Kind("post_layernorm", classed=False, mask=(None,), stretch=True),
    "dinov2": Kind("layernorm"),
    "dinov2_with_registers": Kind("layernorm"),
    "dinov3_vit": Kind("norm"),
}


class HFVision(Vision):
    """The vision tower of a transformers checkpoint, read at one of its layers.

    checkpoint: a folder, a `pkg:` folder or a hub id. layer: whose output the patches are, as an index into
    transformers' hidden_states: -1 the last, -2 the one before (LLaVA-1.5). norm: whether the tower's final layer
    norm is applied to it. pad: pad images to a square with the mean colour first (LLaVA-1.5) instead of what the
    checkpoint's processor does. image_size: in pixels; None: the size of the checkpoint's processor. dense: how
    patches come into the joint space: plain, the last layer's output; value, its last layer sees every patch alone,
    so that attention passes on the patch's own value (MaskCLIP, arXiv 2112.01071). random: take only the
    configuration, not the weights. pil: images are resized by Pillow, as where LLaVA's numbers were published; else by
    torchvision, transformers' own choice since, in less than half the time and up to 2/255 off it.
    """

    def __init__(
        self,
        checkpoint: str,
        layer: int = -2,
        norm: bool = False,
        pad: bool = False,
        image_size: int | None = None,
        dense: Literal["plain", "value"] = "plain",
        random: bool = False,
        pil: bool = False,
    ) -> None:
        super().__init__()
        one_of("dense", dense, ("plain", "value"))
        self.checkpoint, self.norm, self.pad, self.dense, self.random = checkpoint, norm, pad, dense, random
        self.pil = pil
        self.kind = _kind(checkpoint)
        whole = load(checkpoint, random)
        self.tower: Any = getattr(whole, "vision_model", whole)
        self.project: nn.Module | None = getattr(whole, "visual_projection", None)
        self.processor = _processor(checkpoint, image_size, pil)
        self.steps = Steps.of(self.processor)
        config = self.tower.config
        self.image_size = _side(self.processor, checkpoint)
        self.dim, self.grid = config.hidden_size, (self.image_size // config.patch_size,) * 2
        self.joint = _joint(whole)
        self.first = self.kind.classed + getattr(config, "num_register_tokens", 0)  # tokens before the patches
        for noise in ("shift", "jitter", "rescale"):  # of positions in training mode (DINOv3); our images have one size
            setattr(config, f"pos_embed_{noise}", None)
        self._frequencies = [(m, m.inv_freq) for m in self.tower.modules() if hasattr(m, "inv_freq")]  # of RoPE
        self.layers = config.num_hidden_layers
        self.depth = depth(layer, self.layers, checkpoint)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "HFVision":
        """Frequencies stay fp32 when weights are cast, as where transformers loads weights in that precision."""
        plain: Any = super()
        plain._apply(fn, recurse)
        for module, inv_freq in self._frequencies:
            module.inv_freq = inv_freq.to(module.inv_freq.device)
        return self

    def pixels(self, image: "Image", scale: int = 1) -> Tensor:
        """pixels_3SS, fp32, as the checkpoint's own image processor makes them."""
        image, crop = rgb(image), bool(self.processor.do_center_crop)
        image = square(image, self.processor.image_mean) if self.pad else middle(image) if crop else image
        if self.steps:
            return self.steps(image, scale)
        sizes = {"size": self.processor.size, **({"crop_size": self.processor.crop_size} if crop else {})}
        wanted = {name: {key: side * scale for key, side in dict(size).items()} for name, size in sizes.items()}
        return torch.as_tensor(self.processor(images=image, return_tensors="pt", **wanted)["pixel_values"][0])

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """patches_BPC. Layers above the chosen one are not run."""
        return self._patches(self._states(pixels_B3SS, {self.depth})[self.depth])

    def both(self, pixels_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """patches_BPC and dense_BPJ of one pass."""
        if not self.joint:
            raise no_text(self.checkpoint)
        last = self.layers - (self.dense == "value")
        states = self._states(pixels_B3SS, {self.depth, last})
        return self._patches(states[self.depth]), self._dense(states[last])

    def _states(self, pixels_B3SS: Tensor, wanted: set[int]) -> dict[int, Tensor]:
        """hidden_BTC after so many layers, for every number wanted: transformers' hidden_states, no layer too many.

        The tower's own modules are called one by one: hooks (ZeRO-3) and activation checkpointing see ordinary calls,
        and no module has to be taken out or interrupted.
        """
        hidden_BTC, more = self._begin(pixels_B3SS)
        found = {0: hidden_BTC}
        for number, layer in enumerate(islice(self._layers(), max(wanted)), 1):
            hidden_BTC = layer(hidden_BTC, *self.kind.mask, **more)
            if number in wanted:
                found[number] = hidden_BTC
        return found

    def _begin(self, pixels_B3SS: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """hidden_BTC before the first layer, and what every layer is given besides."""
        check_pixels(pixels_B3SS, self.image_size, self.checkpoint)
        pixels_B3SS = pixels_B3SS.to(self.tower.dtype)
        stretch = self.kind.stretch and self.image_size != self.tower.config.image_size
        hidden_BTC = self.tower.embeddings(pixels_B3SS, **({"interpolate_pos_encoding": True} if stretch else {}))
        if hasattr(self.tower, "pre_layrnorm"):  # CLIP's, and transformers' spelling
            hidden_BTC = self.tower.pre_layrnorm(hidden_BTC)
        if not hasattr(self.tower, "rope_embeddings"):
            return hidden_BTC, {}
        return hidden_BTC, {"position_embeddings": self.tower.rope_embeddings(pixels_B3SS)}  # DINOv3

    def _layers(self) -> nn.ModuleList:
        return layers(self.tower, self.layers)

    def _patches(self, hidden_BTC: Tensor) -> Tensor:
        patches_BPC = self._only_patches(hidden_BTC)
        return self._final_norm(patches_BPC) if self.norm else patches_BPC

    def _only_patches(self, hidden_BTC: Tensor) -> Tensor:
        if hidden_BTC.shape[1] != self.first + self.patches:
            grid = " x ".join(map(str, self.grid))
            found = hidden_BTC.shape[1]
            raise CardError(f"{self.checkpoint} gives {found} tokens, not {self.first} and a grid of {grid}")
        return hidden_BTC[:, self.first :]

    def _final_norm(self, hidden_BPC: Tensor) -> Tensor:
        normed_BPC: Tensor = self.final_norm(hidden_BPC)
        return normed_BPC

    @property
    def final_norm(self) -> nn.Module:
        found: nn.Module = getattr(self.tower, self.kind.norm)
        return found

    def _dense(self, last_BTC: Tensor) -> Tensor:
        """dense_BPJ: each patch through what turns the pooled image into the joint space (SEA, eq. 4)."""
        last_BPC = self._only_patches(last_BTC)
        if self.dense == "value":
            last_BPC = alone(lambda one_N1C: self._layers()[-1](one_N1C, *self.kind.mask), last_BPC)
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
        whole = load(self.checkpoint, self.random).eval()
        whole.vision_model = nn.Identity()
        whole = whole.to(device=next(self.parameters()).device, dtype=torch.float32)
        tokenizer = pretrained.read(self.checkpoint, AutoTokenizer.from_pretrained)
        rows = []
        for start in range(0, len(texts), TEXTS):
            ids_WT = _token_ids(tokenizer, whole, texts[start : start + TEXTS])
            rows.append(F.normalize(_pooled(whole.get_text_features(ids_WT)), dim=-1))
        return torch.cat(rows)

    def checkpoint_activations(self) -> None:
        pretrained.recompute(self.tower)

    def identity(self) -> str:
        digest = files.Hashes().of(self.checkpoint)
        name = f"{Path(self.checkpoint).name} {digest[:12]}" if digest else self.checkpoint
        settings = [f"{self.image_size} px", *["padded"] * self.pad, *["value"] * (self.dense == "value")]
        settings += ["pil"] * self.pil
        return ", ".join([name, *settings])

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """The whole checkpoint, text tower included, with this tower's weights in it."""
        given = self.state_dict() if state is None else state
        whole = load(self.checkpoint, self.random)
        whole.to(torch.promote_types(whole.dtype, next(iter(given.values())).dtype))  # fp16 would lose bf16's range
        parts = {"tower": getattr(whole, "vision_model", whole), "project": getattr(whole, "visual_projection", None)}
        for name, part in parts.items():
            own = {key.removeprefix(f"{name}."): value for key, value in given.items() if key.startswith(f"{name}.")}
            if part is not None:
                part.load_state_dict(own)
        write_checkpoint(whole, self.checkpoint, folder)


def layers(tower: nn.Module, count: int) -> nn.ModuleList:
    """The transformer layers of a tower that has so many."""
    return next(m for m in tower.modules() if isinstance(m, nn.ModuleList) and len(m) == count)


def load(checkpoint: str, random: bool) -> Any:
    """The model of a checkpoint, or one of the same configuration with random weights."""
    if random:
        return AutoModel.from_config(pretrained.read(checkpoint, AutoConfig.from_pretrained))
    return pretrained.whole(checkpoint, AutoModel)


def write_checkpoint(whole: Any, like: str, folder: Path) -> None:
    """A model with the processor and tokenizer of the checkpoint it came from."""
    whole.save_pretrained(folder)
    for kind in (AutoImageProcessor, *([AutoTokenizer] if hasattr(whole, "text_model") else [])):
        pretrained.read(like, kind.from_pretrained).save_pretrained(folder)


def _kind(checkpoint: str) -> Kind:
    config = pretrained.read(checkpoint, AutoConfig.from_pretrained)
    name = getattr(config, "vision_config", config).model_type
    if name == "siglip2_vision_model":
        what = f"{checkpoint} is a NaFlex checkpoint: its grid changes from image to image"
        raise CardError(what, fix="a SigLIP 2 of fixed resolution, such as google/siglip2-so400m-patch14-384")
    if name not in KINDS:
        fix = "an encoder of timm or open_clip, or a class of your own; known here: " + ", ".join(KINDS)
        raise CardError(f"{checkpoint} is a {name}, which this class does not know", fix=fix)
    return KINDS[name]


def _joint(whole: Any) -> int:
    """J, or 0 without a text tower."""
    if not hasattr(whole, "text_model"):
        return 0
    found = whole.visual_projection.out_features if hasattr(whole, "visual_projection") else None
    return int(found or whole.config.vision_config.hidden_size)  # SigLIP's head keeps the width


def _processor(checkpoint: str, image_size: int | None, pil: bool) -> Any:
    """The checkpoint's image processor; a size of our own keeps the whole short side."""
    backend = {"backend": "pil"} if pil else {}
    found: Any = pretrained.read(checkpoint, lambda place: AutoImageProcessor.from_pretrained(place, **backend))
    if image_size is not None:
        square_ = {"height": image_size, "width": image_size}
        crop = bool(found.do_center_crop)
        found.size = {"shortest_edge": image_size} if crop else square_
        found.crop_size = square_ if crop else None
    return found


def _side(processor: Any, checkpoint: str) -> int:
    """The side of the images a processor makes."""
    size = dict(processor.crop_size if processor.do_center_crop else processor.size)
    if not (height := size.get("height")) or height != size.get("width"):
        what = f"the image processor of {checkpoint} makes images that are not square: {size}"
        raise CardError(what, fix="image_size: a number of pixels")
    return int(height)


def _token_ids(tokenizer: Any, whole: Any, texts: Sequence[str]) -> Tensor:
    """ids_WT of some texts, as the text tower was trained on them.

    CLIP reads from left to right: what follows the longest text changes nothing. SigLIP looks both ways without a
    mask and takes the last column: it needs the full length. Both know lower case only, and SigLIP 2's tokenizer
    leaves that to us.
    """
    pad = "longest" if hasattr(whole, "text_projection") else "max_length"
    how = {"padding": pad, "padding_side": "right", "truncation": True, "return_tensors": "pt"}
    limit = whole.config.text_config.max_position_embeddings
    found: Tensor = tokenizer([text.lower() for text in texts], max_length=limit, **how)["input_ids"]
    return found.to(whole.device)


def _pooled(out: Any) -> Tensor:
    found = out if isinstance(out, Tensor) else out.pooler_output
    assert isinstance(found, Tensor)
    return found.float()
