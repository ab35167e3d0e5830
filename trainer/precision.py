"""Half precision where it does no harm: autocast, and for fp16 a scaled loss, so that small gradients don't vanish."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from trainer import distributed
from trainer.distributed import World

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}

FIRST_SCALE = 65_536.0
GROW_AFTER = 2000  # steps without an infinite gradient: then the scale is doubled (as torch's GradScaler does)


class Precision:
    """What a run's arithmetic is done in. `scale` and `good_steps` are what a checkpoint keeps of it."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.half = HALVES.get(name)
        self.scaled = name == "fp16"
        self.scale = FIRST_SCALE if self.scaled else 1.0
        self.good_steps = 0
        self._device = device

    def cast(self) -> AbstractContextManager[object]:
        """The context for the forward pass: what gains by it is done in half precision."""
        if self.half is None:
            return nullcontext()
        return torch.autocast(self._device.type, self.half)

    def usable(self, gradients: Sequence[Tensor], world: World) -> bool:
        """Take the loss's scale out of the gradients. False: one is infinite, so the step is to be left out."""
        if not self.scaled:
            return True
        shares = [distributed.own(gradient) for gradient in gradients]
        torch._foreach_mul_(shares, 1 / self.scale)
        infinite = torch.stack([~share.isfinite().all() for share in shares]).any().float()
        good = not bool(distributed.summed(world, infinite))
        self.good_steps = self.good_steps + 1 if good else 0
        if not good:
            self.scale /= 2
        elif self.good_steps == GROW_AFTER:
            self.scale, self.good_steps = self.scale * 2, 0
        return good
