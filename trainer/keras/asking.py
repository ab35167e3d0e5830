"""What a run's LeNet on Keras says of the test split, and its weights as PyTorch's LeNet has them."""

import zlib
from typing import Any

import numpy as np

from trainer.cache import Arrays
from trainer.config import TrainConfig
from trainer.evaluation import BINS, Array, Evaluation, Verdicts
from trainer.keras.lenet import batch
from trainer.report.found import Found, choose

TEST_BATCH = 1000
TASK, UNITS = "image classification", "images"

Weights = dict[str, Array]


def logits_of(model: Any, arrays: Arrays) -> Array:
    """Its outputs for all of the test split, float64 [N, classes]."""
    starts = range(arrays.train_count, len(arrays.targets), TEST_BATCH)
    parts = [model(batch(arrays, slice(at, at + TEST_BATCH))[0], training=False).numpy() for at in starts]
    return np.concatenate(parts).astype(np.float64)


def judge(logits: Array, targets: Array) -> Verdicts:
    """The loss, the class and the certainty of each."""
    below = logits - logits.max(1, keepdims=True)
    total = np.exp(below).sum(1)
    losses = np.log(total) - below[np.arange(len(targets)), targets]
    return Verdicts(losses, logits.argmax(1), 1 / total)


def evaluate(verdicts: Verdicts, targets: Array, classes: int) -> Evaluation:
    """The loss and the answers, counted."""
    predicted, sure = verdicts.predicted, verdicts.confidences
    table = np.bincount(targets * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    at = (sure * BINS).astype(np.int64).clip(0, BINS - 1)
    bins = [np.bincount(at, each, BINS) for each in (sure, predicted == targets, np.ones_like(sure))]
    return Evaluation.of(float(verdicts.losses.mean()), table, np.array(bins), classes=True)


def saliency(model: Any, images: Array, classes: Array) -> Array:
    """How strongly each pixel moves the output of its example's class, [N, H, W]; images uint8 [N, H, W, 3]."""
    import tensorflow as tf  # type: ignore[import-untyped]

    scale, *others = model.layers
    pixels = scale(tf.constant(images))
    with tf.GradientTape() as tape:
        tape.watch(pixels)
        x = pixels
        for layer in others:
            x = layer(x)
        of_its_class = tf.reduce_sum(tf.gather(x, classes, batch_dims=1))
    heat: Array = np.abs(tape.gradient(of_its_class, pixels).numpy()).max(3)
    return heat


def weights_of(model: Any) -> Weights:
    """The weights under the names, and in the order and shapes, that PyTorch's LeNet has them."""
    layers = [layer.get_weights() for layer in model.layers if layer.weights]
    held: Weights = {}
    for name, (kernel, bias) in zip(("conv1", "conv2", "fc1", "fc2", "fc3"), layers, strict=True):
        if name == "fc1":  # its inputs are 5 x 5 places of 16 channels; in PyTorch 16 channels of 5 x 5 places
            kernel = kernel.reshape(5, 5, 16, -1).transpose(2, 0, 1, 3).reshape(400, -1)
        order = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
        held |= {f"{name}.weight": np.ascontiguousarray(kernel.transpose(order)), f"{name}.bias": bias}
    return held


def ask(model: Any, arrays: Arrays, config: TrainConfig, epochs: int) -> Found:
    """All that a report says of the model, whose weights are those after `epochs`."""
    targets = arrays.targets[arrays.train_count :]
    verdicts = judge(logits_of(model, arrays), targets)

    def look(chosen: list[int]) -> tuple[Array, list[Array] | None]:
        stored = arrays.inputs[arrays.train_count :][chosen]
        if not chosen:
            return stored, None
        return stored, list(saliency(model, stored.transpose(0, 2, 3, 1), verdicts.predicted[chosen]))

    crc = 0
    for value in weights_of(model).values():
        crc = zlib.crc32(value.tobytes(), crc)
    return Found(
        config=config,
        data_name=config.data_name,
        task=TASK,
        units=UNITS,
        classes=tuple(arrays.classes),
        parameters=model.count_params(),
        fingerprint=f"{crc:08x}",
        epochs=epochs,
        evaluation=evaluate(verdicts, targets, len(arrays.classes)),
        examples=choose(verdicts, targets, look),
    )
