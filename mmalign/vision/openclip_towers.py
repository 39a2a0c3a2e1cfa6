"""How the vision towers of open_clip's models are read: its own ViTs and ResNets, and timm's models.

Letters: as in mmalign.vision; T tokens, those before the patches included.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmalign.errors import CardError
from mmalign.vision import depth
from mmalign.vision.dense import DENSE, Attention, Dense, alone, operated, states_of


class Tower:
    """A vision tower as it is read: its states after each layer, and what makes dense features of them.

    dim: C. layers: how many. grid, patch: rows and columns, and their pixels. ways: the dense features it has; why:
    what stands in the way of the others. norms: whether there is a final norm of patches. prefix: tokens before them.
    """

    dim: int
    layers: int
    grid: tuple[int, int]
    patch: tuple[int, int]
    ways: tuple[Dense, ...] = ()
    why: str = ""
    norms: bool = True
    prefix: int = 0

    def states(self, pixels_B3SS: Tensor, numbers: Sequence[int]) -> dict[int, Tensor]:
        """hidden_BTC after each of these numbers of layers, from one pass."""
        raise NotImplementedError

    def norm(self, hidden_BTC: Tensor) -> Tensor:
        raise NotImplementedError

    def last_layer(self, one_N1C: Tensor) -> Tensor:
        raise NotImplementedError

    def attention(self, number: int) -> Attention:
        """That of the layer behind so many."""
        raise NotImplementedError

    def to_joint(self, last_BPC: Tensor) -> Tensor:
        """dense_BPJ of normed patches."""
        raise NotImplementedError

    def needs(self, dense: Dense) -> list[int]:
        """The states that dense features are made of."""
        return states_of(dense, self.layers)

    def dense(self, states: Mapping[int, Tensor], dense: Dense) -> Tensor:
        """dense_BPJ of these states."""
        if dense == "surgery":
            last_BTC = operated(states, {number: self.attention(number) for number in states})
        else:
            (last_BTC,) = states.values()
        last_BPC = last_BTC[:, self.prefix :]
        if dense == "value":
            last_BPC = alone(self.last_layer, last_BPC)
        return self.to_joint(self.norm(last_BPC))

    def checkpoint_activations(self) -> None:
        raise NotImplementedError


class NativeViT(Tower):
    """open_clip's own."""

    prefix = 1

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.dim, self.grid, self.layers = visual.transformer.width, tuple(visual.grid_size), visual.transformer.layers
        self.patch = tuple(visual.patch_size)
        self.norms = getattr(visual, "attn_pool", None) is None
        self.ways = DENSE if self.norms else ()
        self.why = "" if self.norms else "pools with CoCa's queries, which are not defined for one patch alone"
        if self.norms and not isinstance(visual.transformer.resblocks[-1].attn, nn.MultiheadAttention):
            self.ways, self.why = ("plain", "value"), "has attention of its own kind"

    def states(self, pixels_B3SS: Tensor, numbers: Sequence[int]) -> dict[int, Tensor]:
        out: dict[str, list[Tensor]] = self.visual.forward_intermediates(
            pixels_B3SS, [number - 1 for number in numbers], stop_early=True, intermediates_only=True,
            output_fmt="NLC", output_extra_tokens=True,
        )  # fmt: skip
        pairs = zip(out["image_intermediates_prefix"], out["image_intermediates"], strict=True)
        return dict(zip(numbers, (torch.cat(pair, 1) for pair in pairs), strict=True))

    def norm(self, hidden_BTC: Tensor) -> Tensor:
        normed_BTC: Tensor = self.visual.ln_post(hidden_BTC)
        return normed_BTC

    def last_layer(self, one_N1C: Tensor) -> Tensor:
        output_N1C: Tensor = self.visual.transformer.resblocks[-1](one_N1C)
        return output_N1C

    def attention(self, number: int) -> Attention:
        block = self.visual.transformer.resblocks[number]
        attention = block.attn

        def values(hidden_BTC: Tensor) -> Tensor:
            weight, bias = attention.in_proj_weight, attention.in_proj_bias  # of queries, keys and values
            return nn.functional.linear(block.ln_1(hidden_BTC), weight.chunk(3)[2], bias.chunk(3)[2])

        return Attention(values, lambda mixed_BTC: block.ls_1(attention.out_proj(mixed_BTC)), attention.num_heads)

    def to_joint(self, last_BPC: Tensor) -> Tensor:
        dense_BPJ: Tensor = last_BPC @ self.visual.proj
        return dense_BPJ

    def checkpoint_activations(self) -> None:
        self.visual.set_grad_checkpointing(True)


class TimmViT(Tower):
    """timm's, and what is built like them."""

    def __init__(self, visual: Any) -> None:
        from timm.models.eva import EvaBlock
        from timm.models.vision_transformer import Attention as Plain
        from timm.models.vision_transformer import Block

        self.visual, self.trunk = visual, visual.trunk
        self.dim, self.grid = self.trunk.num_features, tuple(self.trunk.patch_embed.grid_size)
        self.layers, self.prefix = len(self.trunk.blocks), self.trunk.num_prefix_tokens
        self.patch = (self.trunk.feature_info[-1]["reduction"],) * 2
        pool, last = self.trunk.global_pool, self.trunk.blocks[-1]  # map: attention, token: takes the first
        if pool not in ("map", "token"):
            self.why = f"pools by {pool!r}, which is not defined for one patch alone"
        elif not isinstance(last, (Block, EvaBlock)):
            self.ways, self.why = ("plain",), "is not built of a ViT's plain layers"
        elif pool == "map":
            self.ways, self.why = ("plain", "value"), "pools by attention, not by its class token"
        elif type(last.attn) is not Plain or getattr(last.attn, "gate", None) is not None:
            self.ways, self.why = ("plain", "value"), "has attention of its own kind"  # such as rotary positions
        else:
            self.ways = DENSE

    def states(self, pixels_B3SS: Tensor, numbers: Sequence[int]) -> dict[int, Tensor]:
        pairs: list[tuple[Tensor, Tensor]] = self.trunk.forward_intermediates(
            pixels_B3SS, [number - 1 for number in numbers], return_prefix_tokens=True, stop_early=True,
            intermediates_only=True, output_fmt="NLC",
        )  # fmt: skip
        if not self.prefix:
            return dict(zip(numbers, cast(list[Tensor], pairs), strict=True))
        return dict(zip(numbers, (torch.cat([before, patches], 1) for patches, before in pairs), strict=True))

    def norm(self, hidden_BTC: Tensor) -> Tensor:
        normed_BTC: Tensor = self.trunk.norm(hidden_BTC)
        return normed_BTC

    def last_layer(self, one_N1C: Tensor) -> Tensor:
        output_N1C: Tensor = self.trunk.blocks[-1](one_N1C)
        return output_N1C

    def attention(self, number: int) -> Attention:
        block = self.trunk.blocks[number]
        attention = block.attn
        return Attention(
            lambda hidden_BTC: attention.qkv(block.norm1(hidden_BTC)).chunk(3, -1)[2],
            lambda mixed_BTC: block.ls1(attention.proj(attention.norm(mixed_BTC))),
            attention.num_heads,
        )

    def to_joint(self, last_BPC: Tensor) -> Tensor:
        return alone(lambda one_N1C: self.visual.head(self.trunk.forward_head(one_N1C)), last_BPC)

    def checkpoint_activations(self) -> None:
        self.trunk.set_grad_checkpointing(True)


class TimmMaps(Tower):
    """timm's models of stages, such as ConvNeXt: the map after a stage is the grid.

    Where the last stage's map is averaged, each of its cells alone through the head has a place in the joint space.
    """

    norms = False  # it is behind the pool

    def __init__(self, visual: Any, layer: int, name: str) -> None:
        self.visual, self.trunk = visual, visual.trunk
        stages = self.trunk.feature_info
        self.layers = len(stages)
        stage = stages[depth(layer, self.layers, name) - 1]
        reduction = stage["reduction"]
        self.dim, self.patch, self.grid = stage["num_chs"], (reduction,) * 2, (side(visual) // reduction,) * 2
        if type(self.trunk).__name__ != "ConvNeXt":
            self.why = f"is a {type(self.trunk).__name__}, whose pool is not defined for one patch alone here"
        elif stage is not stages[-1]:
            self.why = f"has words for its last map alone, which has another grid (layer: -1, not {layer})"
        else:
            self.ways, self.why = ("plain",), "has no attention"

    def states(self, pixels_B3SS: Tensor, numbers: Sequence[int]) -> dict[int, Tensor]:
        maps: list[Tensor] = self.trunk.forward_intermediates(
            pixels_B3SS, [number - 1 for number in numbers], stop_early=True, intermediates_only=True
        )
        return {number: map_.flatten(2).transpose(1, 2) for number, map_ in zip(numbers, maps, strict=True)}

    def norm(self, hidden_BTC: Tensor) -> Tensor:
        return hidden_BTC  # the head's own, in `to_joint`

    def to_joint(self, last_BPC: Tensor) -> Tensor:
        def head(one_N1C: Tensor) -> Tensor:
            joined_NJ: Tensor = self.visual.head(self.trunk.forward_head(self.trunk.norm_pre(one_N1C.mT[..., None])))
            return joined_NJ

        return alone(head, last_BPC)

    def checkpoint_activations(self) -> None:
        self.trunk.set_grad_checkpointing(True)


class NativeResNet(Tower):
    """open_clip's own ResNets: stem and four stages; `value` is MaskCLIP's, value and output projection of the pool."""

    norms = False

    def __init__(self, visual: Any, layer: int, name: str) -> None:
        self.visual, self.layers, self.recompute = visual, 5, False
        number = depth(layer, self.layers, name)
        reduction = max(4, 2**number)
        self.dim = visual.conv3.out_channels * (2**number if number > 1 else 1)
        self.patch, self.grid = (reduction,) * 2, (side(visual) // reduction,) * 2
        if number == self.layers:
            self.ways, self.why = ("value",), "pools by attention over the whole picture"
        else:
            self.why = f"has words for its last map alone, which has another grid (layer: -1, not {layer})"

    def _stages(self) -> list[Any]:
        visual = self.visual
        return [visual.stem, visual.layer1, visual.layer2, visual.layer3, visual.layer4]

    def states(self, pixels_B3SS: Tensor, numbers: Sequence[int]) -> dict[int, Tensor]:
        map_BCHW, states = pixels_B3SS, {}
        for number, stage in enumerate(self._stages()[: max(numbers)], 1):
            recompute = self.recompute and self.visual.training
            map_BCHW = checkpoint(stage, map_BCHW, use_reentrant=False) if recompute else stage(map_BCHW)
            states[number] = map_BCHW.flatten(2).transpose(1, 2)
        return {number: states[number] for number in numbers}

    def norm(self, hidden_BTC: Tensor) -> Tensor:
        return hidden_BTC

    def needs(self, dense: Dense) -> list[int]:
        return [self.layers]

    def dense(self, states: Mapping[int, Tensor], dense: Dense) -> Tensor:
        return self.to_joint(states[self.layers])

    def to_joint(self, last_BPC: Tensor) -> Tensor:
        pool = self.visual.attnpool
        dense_BPJ: Tensor = pool.c_proj(pool.v_proj(last_BPC))
        return dense_BPJ

    def checkpoint_activations(self) -> None:
        self.recompute = True


def side(visual: Any) -> int:
    """Of the images that a tower sees, in pixels."""
    size: int | tuple[int, int] = visual.image_size
    return size if isinstance(size, int) else size[0]


def tower_of(visual: Any, layer: int, name: str) -> Tower:
    """How the tower of the model `name` is read; a CardError for one that gives neither patches nor maps, or a layer it
    does not have."""
    if hasattr(visual, "transformer"):
        return NativeViT(visual)
    if hasattr(visual, "attnpool") and hasattr(visual, "layer4"):
        return NativeResNet(visual, layer, name)
    trunk = getattr(visual, "trunk", None)
    if hasattr(trunk, "blocks") and hasattr(getattr(trunk, "patch_embed", None), "grid_size"):
        return TimmViT(visual)
    if hasattr(trunk, "forward_intermediates") and getattr(trunk, "feature_info", None):
        return TimmMaps(visual, layer, name)
    raise CardError(f"open_clip model {name!r} has neither patches nor maps", fix="a ViT, ConvNeXt or ResNet")
