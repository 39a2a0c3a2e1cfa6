"""DeepSpeed under the loop: its configuration from the recipe, and the optimizer's state by parameter name.

The state is read and written in full precision under the parameter's own name, whatever the ZeRO stage and the number
of processes: a checkpoint of eight devices goes on with two.
"""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore

from mmalign.errors import RunError
from mmalign.plan import recipe
from mmalign.training.optim import ParamGroup, optimizer

WAIT = timedelta(hours=4)  # for the slowest rank to write or to ask; NCCL's own 10 minutes would end the stage
KEYS = ("exp_avg", "exp_avg_sq", "momentum_buffer")  # of AdamW, and of Muon


def world() -> tuple[int, int]:
    """(rank, processes)."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def device() -> torch.device:
    """This process's GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def memory() -> float | None:
    """GiB of the GPU that has the least, over all ranks, which all must ask; None where there is none."""
    if not torch.cuda.is_available():
        return None
    least = torch.tensor(float(torch.cuda.get_device_properties(device()).total_memory), device=device())
    if world()[1] > 1:
        dist.all_reduce(least, op=dist.ReduceOp.MIN)
    return least.item() / 2**30


def connect() -> None:
    """Join the process group: NCCL on GPUs, gloo on CPUs; a single process needs no network for it."""
    if dist.is_initialized():
        return
    rank, size = world()
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    if size == 1:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group(backend, rank=rank, world_size=size, timeout=WAIT)


def _deepspeed() -> Any:
    """DeepSpeed, without the shared-memory op that it would compile with g++ at its first use on CPUs."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")  # it insists, also for one process
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def config(
    settings: recipe.EngineSettings, precision: str, micro_batch: int, passes: int, clip: float
) -> dict[str, Any]:
    """DeepSpeed's configuration for a stage. passes: micro-batches a step on this rank; clip: norm of the gradient."""
    zero: dict[str, Any] = {"stage": settings.zero}
    if settings.zero == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = False  # weights are written by name, see checkpoint.py
    if settings.offload and settings.zero:
        zero["offload_optimizer"] = {"device": "cpu"}
        if settings.zero == 3:
            zero["offload_param"] = {"device": "cpu"}
    ds_config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": passes,
        "gradient_clipping": clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 62,
    }
    if precision == "bf16":
        ds_config["bf16"] = {"enabled": True}
        if settings.zero:
            ds_config["data_types"] = {"grad_accum_dtype": "fp32"}
    return ds_config


class Engine:
    """A module under DeepSpeed: call it for a forward pass, then `backward` and `step`.

    groups: what is trained; micro_batch: samples a pass; passes: of gradient accumulation, on this rank.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: Sequence[ParamGroup],
        optim: recipe.Optim,
        settings: recipe.EngineSettings,
        precision: str,
        micro_batch: int,
        passes: int,
    ) -> None:
        connect()
        deepspeed = _deepspeed()
        deepspeed.init_distributed(dist_init_required=False, verbose=False)
        self.module, self.groups, self.zero, self.precision = module, list(groups), settings.zero, precision
        self.passes, self.steps = passes, 0
        self.engine: Any = deepspeed.initialize(
            model=module.to(device()),
            optimizer=optimizer(groups, optim),
            config=config(settings, precision, micro_batch, passes, optim.clip),
        )[0]
        self.device: torch.device = self.engine.device
        self.base.state.clear()  # bf16 without ZeRO steps once at its start, which would shift Adam's bias correction

    def __call__(self, *inputs: Any) -> Any:
        """The module's forward pass."""
        return self.engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar; DeepSpeed divides it by passes and ranks."""
        self.engine.backward(loss)

    def step(self, factor: float, last: bool) -> Tensor | float | None:
        """After every pass; at the `last` of a step the weights move. Returns the gradient's norm then.

        factor: what the peak rate of every group is multiplied by. The norm is that before clipping; None: unknown.
        Where it is not finite, on all ranks then, weights and optimizer stay as they are, and it is a float. A tensor
        is finite: DeepSpeed has looked at it before it moved weights, and to read it would wait for these to move.
        """
        if not last:
            self.engine.step()
            return None
        for group, torch_group in zip(self.groups, self._torch_groups(), strict=True):
            torch_group["lr"] = group.lr * factor
        norm = self._norm() if not self.zero and self.precision == "fp32" else None
        if norm is not None and not math.isfinite(norm):  # DeepSpeed leaves such steps out itself, but for plain fp32
            self._leave_out()
            return norm
        self.engine.step()
        self.steps += 1
        if norm is not None:
            return norm
        norm = self.engine.get_global_grad_norm()
        looked = getattr(self.engine.optimizer, "overflow", None) is False
        return norm if norm is None or (looked and isinstance(norm, Tensor)) else float(norm)

    def _leave_out(self) -> None:
        """End a step without the optimizer: no gradients, and the next pass is the first of another step."""
        self.engine.zero_grad()
        self.engine.micro_steps += 1

    def _norm(self) -> float:
        grads = [p.grad for group in self.groups for p in group.params if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0

    @property
    def base(self) -> torch.optim.Optimizer:
        """The torch optimizer at the bottom; its groups hold the fp32 weights it steps on."""
        inner = self.engine.optimizer
        while not isinstance(inner, torch.optim.Optimizer) or hasattr(inner, "optimizer"):
            inner = inner.optimizer
        return inner

    def _torch_groups(self) -> list[dict[str, Any]]:
        """The optimizer's own groups in the order of ours (Muon's come first there)."""
        order = sorted(range(len(self.groups)), key=lambda n: not self.groups[n].muon)
        theirs = dict(zip(order, self.engine.optimizer.param_groups, strict=True))
        return [theirs[n] for n in range(len(self.groups))]

    # The state by name. Every rank must take part in every call.

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """(name, weight) and (name/key, optimizer state) of every trained parameter: full tensors, fp32, on the CPU,
        which stay as they are when training goes on."""
        self._link()
        for name, parameter, master in self._trained():
            for key in (None, *KEYS):
                if (value := self._get(parameter, master, key)) is not None:
                    yield (name if key is None else f"{name}/{key}"), value.detach().to("cpu", torch.float32, copy=True)

    @property
    def state_bytes(self) -> int:
        """Bytes of `state`, at most: of every trained parameter the weight and two moments."""
        return sum(12 * getattr(p, "ds_numel", p.numel()) for group in self.groups for p in group.params)

    def weights(self, part: str) -> dict[str, Tensor]:
        """Every parameter and buffer of a part under its name inside the part: trained ones fp32, on the CPU.

        part: where it stands in the module, such as `vlm.adapter`.
        """
        prefix = f"{part}."
        trained = {name: value for name, value in self.state() if name.startswith(prefix) and "/" not in name}
        weights: dict[str, Tensor] = {}
        taken: dict[int, Tensor] = {}  # by parameter: one that has several names, as tied heads have, stays one tensor
        for name, value in self.module.state_dict(keep_vars=True).items():
            if name.startswith(prefix):
                whole = trained.get(name, taken.get(id(value)))
                taken[id(value)] = weights[name.removeprefix(prefix)] = (
                    self._gathered(value) if whole is None else whole
                )
        return weights

    def _gathered(self, value: Tensor) -> Tensor:
        if not hasattr(value, "ds_id"):
            return value.detach().cpu()
        import deepspeed

        with deepspeed.zero.GatheredParameters([value]):
            return value.detach().cpu().clone()

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor], steps: int) -> None:
        """Put back what `Engine.state` gave after `steps` optimizer steps; RunError where a parameter is not in it."""
        self.steps = steps
        for master, torch_group in self._masters():
            self.base.state[master] = self._initial_state(master, torch_group, steps)
        self._link()
        for name, parameter, master_weight in self._trained():
            if name not in state:
                raise RunError(f"the checkpoint has no {name}", fix="delete the stage's folder `checkpoints`")
            for key in (None, *KEYS):
                full = name if key is None else f"{name}/{key}"
                if full in state:
                    self._set(parameter, master_weight, key, state[full].to(self.device))

    def _masters(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """(fp32 tensor the optimizer steps on, its group there)."""
        if self.zero == 3:  # between steps the groups of its torch optimizer are empty
            for master in self.engine.optimizer.fp32_partitioned_groups_flat:
                yield master, self.base.param_groups[0]
            return
        for torch_group in self.base.param_groups:
            yield from ((tensor, torch_group) for tensor in torch_group["params"])

    def _initial_state(self, master: Tensor, torch_group: dict[str, Any], steps: int) -> dict[str, Any]:
        """The optimizer's state of a tensor after `steps` steps, with zeros to be filled: Muon's, or AdamW's."""
        if "momentum" in torch_group and "betas" not in torch_group:
            return {"momentum_buffer": torch.zeros_like(master)}
        zeros = {key: torch.zeros_like(master, memory_format=torch.preserve_format) for key in KEYS[:2]}
        return {"step": torch.tensor(float(steps), device=master.device), **zeros}  # where the fused kernel counts

    def _link(self) -> None:
        """Make ZeRO 1 and 2 see the optimizer's state as it is now, not as it was when they first looked."""
        if self.zero in (1, 2) and any(self.base.state.values()):
            self.engine.optimizer._hp_optimizer_states_linked = False
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _trained(self) -> Iterator[tuple[str, nn.Parameter, Tensor | None]]:
        """(name, parameter, its fp32 master weight in the optimizer where that is one whole tensor)."""
        order = sorted(self.groups, key=lambda group: not group.muon)
        if self.zero:
            for group in order:
                yield from ((name, p, None) for name, p in zip(group.names, group.params, strict=True))
            return
        for group, torch_group in zip(order, self.base.param_groups, strict=True):
            yield from zip(group.names, group.params, torch_group["params"], strict=True)

    def _get(self, parameter: nn.Parameter, master: Tensor | None, key: str | None) -> Tensor | None:
        """The weight (key None) or a state of the optimizer, whole; None: it has none."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if master is not None:
            value = master if key is None else self.base.state[master].get(key)
            return value if isinstance(value, Tensor) else None
        if key is None:
            return safe_get_full_fp32_param(parameter)  # type: ignore[no-any-return]
        if key == KEYS[2]:
            return None  # Muon runs without ZeRO
        return safe_get_full_optimizer_state(parameter, key)  # type: ignore[no-any-return]

    def _set(self, parameter: nn.Parameter, master: Tensor | None, key: str | None, value: Tensor) -> None:
        if master is not None:
            (master if key is None else self.base.state[master][key]).copy_(value)
        elif self.zero == 3:
            _set_partition(parameter, key, value)
        else:
            _set_whole(parameter, key, value)
        if key is None and self.zero < 3:
            parameter.data.copy_(value)  # the copy in the model's own precision


def _set_whole(parameter: nn.Parameter, key: str | None, value: Tensor) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    if key is None:
        safe_set_full_fp32_param(parameter, value)
    else:
        safe_set_full_optimizer_state(parameter, value, key)


def _set_partition(parameter: Any, key: str | None, value: Tensor) -> None:
    """This rank's share of a ZeRO-3 parameter; the last ranks' shares are padded with zeros."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    size = parameter.ds_tensor.ds_numel
    start = dist.get_rank() * size
    shard = torch.zeros(size, dtype=value.dtype, device=value.device)
    piece = value.flatten()[start : start + size]
    shard[: len(piece)] = piece
    if key is None:
        safe_set_local_fp32_param(parameter, shard)
        parameter.ds_tensor.data.copy_(shard)
    else:
        safe_set_local_optimizer_state(parameter, shard, key)
