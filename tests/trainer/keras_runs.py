"""Runs on TensorFlow, several in one process: its import alone takes seconds. Prints what came of them as JSON."""

import hashlib
import json
import sys
from pathlib import Path

from trainer.config import configure
from trainer.data import digits
from trainer.errors import TrainerError
from trainer.keras import asking, lenet, train
from trainer.stopping import StopSignals


def weights(out: Path) -> str:
    """A fingerprint of a finished run's weights, read by Keras itself."""
    import keras

    model = keras.models.load_model(out / "model.keras")
    return hashlib.sha256(b"".join(each.tobytes() for each in model.get_weights())).hexdigest()


def settings(out: Path, **more: object) -> object:
    return configure({"framework": "tensorflow", "out": out, "limit": 200, "epochs": 3, "seed": 5, **more})


def main(folder: Path) -> dict[str, object]:
    """What the tests look at."""
    import numpy as np

    found: dict[str, object] = {}
    lines: list[str] = []
    whole = configure({"framework": "tensorflow", "out": folder / "whole", "epochs": 5})
    found["summary"] = train.train(whole, say=lines.append)
    found["lines"] = lines

    import keras

    model = keras.models.load_model(folder / "whole/model.keras")
    arrays = digits.read(whole, Path(sys.argv[2]), print)
    images, labels = lenet.batch(arrays, slice(arrays.train_count, None))
    found["reloaded"] = float((np.argmax(model(images), axis=1) == labels).mean())
    found["logits"] = np.asarray(model(images)).tolist()
    found["heat"] = asking.saliency(model, images[:8], labels[:8]).tolist()

    train.train(settings(folder / "straight"), say=print)
    stop, said = StopSignals(), []

    def stop_in_the_third_epoch(line: str) -> None:
        said.append(line)
        if line.startswith("epoch 2"):
            stop.asked = 15

    try:
        train.train(settings(folder / "stopped"), stop, say=stop_in_the_third_epoch)
    except TrainerError as error:
        found["stopped"] = [str(error), error.exit_code]
    train.train(settings(folder / "stopped"), say=said.append)
    found["said"] = said
    found["weights"] = [weights(folder / "straight"), weights(folder / "stopped")]
    found["metrics"] = [
        [json.loads(line)["train_loss"] for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("straight", "stopped")
    ]
    for name, more in (("other", {"lr": 0.5}), ("diverged", {"lr": 1e30, "resume": False})):
        try:
            train.train(settings(folder / "stopped", **more), say=print)
        except TrainerError as error:
            found[name] = [str(error), error.exit_code]
    found["imported"] = [name for name in ("torch", "torchvision") if name in sys.modules]
    return found


if __name__ == "__main__":
    result = main(Path(sys.argv[1]))
    print("\n" + json.dumps(result))
