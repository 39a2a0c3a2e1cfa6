"""A number on its way from the device to this process, which goes on meanwhile."""

import torch
from torch import Tensor


class Later:
    """A scalar that the device has still to compute. Reading it waits until it was copied, which was asked for when
    this was made, and not for what the device was given to do since."""

    def __init__(self, value: Tensor) -> None:
        self.value, self.copied = value.detach(), None
        if value.is_cuda:
            self.value = torch.empty_like(value, device="cpu", pin_memory=True).copy_(value.detach(), non_blocking=True)
            self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.copied.record()

    def __float__(self) -> float:
        if self.copied is not None:
            self.copied.synchronize()
        return float(self.value)

    def __bool__(self) -> bool:
        return bool(float(self))
