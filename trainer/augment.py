"""Images changed a little at each sight: mirrored, moved, RandAugment; and mixed: mixup, CutMix. On the device, whole
batches at a time.

What is drawn comes from the step's seed, for the whole batch: each of several processes draws the same and takes what
is of its own share, so mirroring and moving are the same on any number of them. RandAugment and mixing are not: they
go by parts of what a process has.
"""

import torch
from torch import Tensor

from trainer.config import TrainConfig
from trainer.errors import BadConfig
from trainer.tasks import IMAGES, Shape

GROUPS = 8  # parts of a batch that RandAugment draws operations for

OPTIONS = ("flip", "shift", "randaugment", "mixup", "cutmix", "adversarial")


def check(config: TrainConfig, shape: Shape) -> None:
    """Raises BadConfig where the data has nothing to mirror, or no pixels to attack."""
    wanted = [name for name in OPTIONS if getattr(config, name)]
    if wanted and shape.task != IMAGES.name:
        raise BadConfig(f"--{wanted[0]} is for images, and this data is for {shape.task}", "Leave it out.")
    if config.shift and config.shift >= min(shape.inputs[1:]):
        raise BadConfig(f"--shift {config.shift} is no less than the images' side", "Move them by a few pixels.")


def changes(config: TrainConfig) -> bool:
    """Whether anything is to be done to stored images."""
    return bool(config.flip or config.shift or config.randaugment)


def changed(config: TrainConfig, images: Tensor, start: int, count: int) -> Tensor:
    """Images uint8 [N, C, H, W], number `start` and on of a batch of `count`, as they are to be seen this time."""
    mine = slice(start, start + len(images))
    if config.flip:
        mirrored = torch.rand(count)[mine].to(images.device) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    if config.shift:
        moves = torch.randint(-config.shift, config.shift + 1, (count, 2))[mine].to(images.device)
        images = moved(images, moves)
    if config.randaugment:
        from torchvision.transforms import v2  # type: ignore[import-untyped]  # 4 s: only where it is asked for

        operations = v2.RandAugment(config.randaugment)
        images = torch.cat([operations(part) for part in images.tensor_split(GROUPS) if len(part)])
    return images


def moved(images: Tensor, moves: Tensor) -> Tensor:
    """Each image moved by its own `moves` [N, 2], pixels down and right; what comes in is the mirrored edge."""
    rows, columns = (
        _mirrored(torch.arange(side, device=images.device) - moves[:, axis, None], side)
        for axis, side in enumerate(images.shape[2:])
    )
    places = (rows[:, :, None] * images.shape[3] + columns[:, None, :]).flatten(1)  # [N, H * W]
    # one gather on the device: a fourth of the time of slices, and a GPU needn't wait
    return images.flatten(2).gather(2, places[:, None].expand(-1, images.shape[1], -1)).view(images.shape)


def mixed(config: TrainConfig, inputs: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Prepared images, and targets as shares of classes [N, classes], where mixing is asked for."""
    if not config.mixup and not config.cutmix:
        return inputs, targets
    from torchvision.transforms import v2

    ways = [v2.MixUp(alpha=config.mixup, num_classes=classes)] if config.mixup else []
    ways += [v2.CutMix(alpha=config.cutmix, num_classes=classes)] if config.cutmix else []
    pictures, shares = v2.RandomChoice(ways)(inputs, targets)
    return pictures, shares


def _mirrored(places: Tensor, side: int) -> Tensor:
    """Places outside of an edge, brought back in as if it were a mirror."""
    places = places.abs()
    return torch.where(places >= side, 2 * (side - 1) - places, places)
