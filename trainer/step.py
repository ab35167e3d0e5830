"""One step: from a batch to an update of the weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer import augment, device, distributed, optim, robustness, schedule
from trainer.checkpoint import State
from trainer.config import TrainConfig
from trainer.data import Data
from trainer.distributed import World
from trainer.privacy import PrivateSteps


@dataclass(frozen=True)
class Stepper:
    """Takes a run's steps. `forward` is the model as it is called: compiled, or exchanging with other processes."""

    config: TrainConfig
    data: Data
    state: State
    world: World
    forward: Callable[[Tensor], Tensor]
    layout: torch.memory_format
    private: PrivateSteps | None = None

    def rehearse(self) -> None:
        """A backward pass for nothing, so that several processes add their gradients up in the same order at each step.

        DDP learns in its first one in which order they come, and from then on exchanges them in that order. A start
        that goes on from a checkpoint would have another first one, and with three processes or more other bits.
        """
        model, train, place = self.state.model, self.data.train, self.state.losses.device
        buffers = [buffer.clone() for buffer in model.buffers()]
        self._loss(train.inputs[:2].to(place), train.targets[:2].to(place)).backward()  # type: ignore[no-untyped-call]
        for parameter in model.parameters():
            parameter.grad = None
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)

    def take(self, inputs: Tensor, targets: Tensor, count: int) -> Tensor:
        """One update from this process's share of a batch of `count`. Returns the mean loss of the whole batch."""
        config, state, parameters = self.config, self.state, self.state.optimiser.parameters
        done, batches = state.epoch * len(state.losses) + state.step, len(state.losses)
        device.seed_all((config.seed * 1_000_003 + state.epoch) * 1_000_003 + state.step)  # a resume needs no history
        state.optimiser.scale_rate(schedule.rate(config, done, batches))
        loss = self._backward(inputs, targets, count) if self.private is None else self._private(inputs, targets, done)
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        if state.precision.usable(gradients, self.world):
            if config.clip_norm:
                optim.clip(gradients, config.clip_norm, self.world)
            state.optimiser.step(gradients)
        for parameter in parameters:
            parameter.grad = None
        if state.average:
            state.average.update(done)
        return distributed.summed(self.world, loss)

    def _backward(self, inputs: Tensor, targets: Tensor, count: int) -> Tensor:
        """Leaves the mean gradient of the whole batch in the parameters. Returns this share's part of its mean loss."""
        config, state, world = self.config, self.state, self.world
        if augment.changes(config):
            inputs = augment.changed(config, inputs, world.start(count), count)
        # as many parts on every process, none of them empty
        parts = max(1, min(config.accumulate, count // world.size))
        total = torch.zeros((), device=state.losses.device)
        seen = zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True)
        for at, (some_inputs, some_targets) in enumerate(seen):
            with distributed.without_exchange(self.forward, until_last=at < parts - 1):
                loss = self._loss(some_inputs, some_targets)
                share = len(some_targets) / count if world.has_share(count) else 0.0
                if share != 1.0:
                    loss = loss * share
                total += loss.detach()
                scale = state.precision.scale * world.size  # gradients come as means over the processes
                (loss * scale if scale != 1.0 else loss).backward()  # type: ignore[no-untyped-call]
        return total

    def _private(self, inputs: Tensor, targets: Tensor, step: int) -> Tensor:
        """The same, of examples that were drawn privately: all that is left there is clipped and noisy."""
        assert self.private is not None
        if augment.changes(self.config) and len(targets):
            inputs = augment.changed(self.config, inputs, 0, len(targets))
        return self.private.backward(lambda: self._loss(inputs, targets), len(targets), step)

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of some examples, as they are stored."""
        config, task = self.config, self.data.task
        inputs = task.prepare(inputs)
        if inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=self.layout)
        inputs, targets = augment.mixed(config, inputs, targets, self.data.shape.classes)
        with self.state.precision.cast():
            if config.adversarial:
                inputs = robustness.hardening(self.state.model, inputs, targets, task, config)
            return task.loss(self.forward(inputs), targets, config.label_smoothing)
