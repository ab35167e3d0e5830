"""LeNet with Keras' layers: made, and taken a step."""

import contextlib
import math
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from trainer.cache import Arrays
from trainer.config import TrainConfig
from trainer.errors import MissingDevice

LEVEL = "TF_CPP_MIN_LOG_LEVEL"
NOISE = "^(WARNING: All log messages before absl|[IW][0-9]{4} )"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what TensorFlow says of itself on stderr while it is imported, unless the user has set how much it says.

    Some of it no setting keeps back. A process of its own sifts it: what ends ours says why all the same.
    """
    if LEVEL in os.environ:
        yield
        return
    os.environ[LEVEL] = "2"
    try:
        words = ["grep", "-avE", "--line-buffered", NOISE]
        sieve = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=2, start_new_session=True)
    except OSError:
        yield
        return
    assert sieve.stdin
    kept = os.dup(2)
    os.dup2(sieve.stdin.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        sieve.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # what was started meanwhile may have it open
            sieve.wait(5)


def settle(config: TrainConfig) -> str:
    """Device, threads, and everything that draws; gives the device's name. Raises MissingDevice."""
    with quiet():
        import keras  # type: ignore[import-untyped]
        import tensorflow as tf  # type: ignore[import-untyped]

    gpus = tf.config.list_physical_devices("GPU")
    if config.device == "cuda" and not gpus:
        raise MissingDevice(
            "there is no CUDA device that TensorFlow sees", "Check nvidia-smi, or train with --device cpu."
        )
    if config.device == "cpu" and gpus:
        tf.config.set_visible_devices([], "GPU")
        gpus = []
    for read, change in (
        (tf.config.threading.get_intra_op_parallelism_threads, tf.config.threading.set_intra_op_parallelism_threads),
        (tf.config.threading.get_inter_op_parallelism_threads, tf.config.threading.set_inter_op_parallelism_threads),
    ):
        if read() != config.threads:
            change(config.threads)
    keras.utils.set_random_seed(config.seed)
    tf.config.experimental.enable_op_determinism()
    return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")) if gpus else "cpu"


def smi_name(where: str) -> str:
    """How nvidia-smi is told which GPU this is: the first of those that may be used. "" for the CPU."""
    return "" if where == "cpu" else os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]


def build(config: TrainConfig, classes: int) -> Any:
    """LeNet, uint8 pixels [N, 32, 32, 3] to logits, drawn from PyTorch's ranges: +- 1 / sqrt(a unit's inputs)."""
    from keras import Sequential, layers
    from keras.initializers import RandomUniform  # type: ignore[import-untyped]
    from keras.losses import SparseCategoricalCrossentropy  # type: ignore[import-untyped]
    from keras.optimizers import SGD  # type: ignore[import-untyped]

    seeds = iter(range(config.seed * 1000, config.seed * 1000 + 100))

    def drawn(inputs: int) -> dict[str, Any]:
        bound = 1 / math.sqrt(inputs)
        return {
            name: RandomUniform(-bound, bound, seed=next(seeds)) for name in ("kernel_initializer", "bias_initializer")
        }

    model = Sequential(
        [
            layers.Input((32, 32, 3), dtype="uint8"),
            layers.Rescaling(2 / 255, offset=-1),  # ToTensor and Normalize(0.5, 0.5)
            layers.Conv2D(6, 5, **drawn(3 * 25)),
            layers.MaxPooling2D(2),
            layers.ReLU(),
            layers.Conv2D(16, 5, **drawn(6 * 25)),
            layers.MaxPooling2D(2),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(120, activation="relu", **drawn(400)),
            layers.Dense(84, activation="relu", **drawn(120)),
            layers.Dense(classes, **drawn(84)),
        ],
        name="lenet",
    )
    model.compile(SGD(config.lr, momentum=config.momentum), SparseCategoricalCrossentropy(from_logits=True))
    model.optimizer.build(model.trainable_variables)
    return model


def steps_of(model: Any) -> Callable[[Any, Any], Any]:
    """One step of SGD as a graph, made once a model."""
    import tensorflow as tf

    if not hasattr(model, "one_step"):

        def one_step(images: Any, labels: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = model.loss(labels, model(images, training=True))
            model.optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
            return loss

        shapes = [tf.TensorSpec([None, 32, 32, 3], tf.uint8), tf.TensorSpec([None], tf.int64)]
        model.one_step = tf.function(one_step, input_signature=shapes)
    step: Callable[[Any, Any], Any] = model.one_step
    return step


def batch(arrays: Arrays, index: Any) -> tuple[Any, Any]:
    """Images uint8 [N, 32, 32, 3] and labels, as TensorFlow takes them."""
    return np.ascontiguousarray(arrays.inputs[index].transpose(0, 2, 3, 1)), arrays.targets[index]
