"""What the model in this folder says of a picture, a text or a recording, or how it goes on with a text.

    python predict.py cat.jpg dog.png      what each is, and how sure the model is
    python predict.py --json cat.jpg       every class's probability
    python predict.py --prompt "The "      where it is a language model: the text, and how it goes on

Needs onnxruntime, numpy and, for pictures, pillow (see requirements.txt); nothing of what trained the model. Programs
use `Predictor().predict(data)`, or `.go_on(prompt)`. The file is part of `trainer`, and is copied as it is into what
runs elsewhere.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Array = Any  # of numpy; its own types need a newer Python than some devices have
Card = Any  # a dict: what card.json holds

HERE = Path(__file__).parent
PICTURES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM")  # formats whose size is known before they are unpacked
MOST_PIXELS = 40_000_000  # of a picture: 120 MB unpacked
MOST_SECONDS = 600  # of a recording
LANGUAGE = "language modelling"


class BadExample(ValueError):
    """What was given can't be read as the model's kind of input."""


class TooLarge(BadExample):
    """It would take more memory than is good for the machine."""


def reader(card: Card, most_pixels: int = MOST_PIXELS) -> Callable[[bytes], Array]:
    """What turns a file's bytes into one example, as the model takes it. Raises BadExample for a task without."""
    task, shape = card["task"], card["input"]["shape"][1:]
    if task == "image classification":
        return lambda data: picture(data, shape, most_pixels)
    if task == "text classification":
        return lambda data: text(data, shape[0])
    if task == "sound classification":
        return lambda data: sound(data, shape[0], card["input"]["sample_rate"])
    raise BadExample(f"a model for {task} has no classes to tell")


def picture(data: bytes, shape: list[int], most_pixels: int = MOST_PIXELS) -> Array:
    """A picture file to uint8 [height, width, 3], resized as the training resized. Raises BadExample."""
    from PIL import Image, UnidentifiedImageError

    height, width, _ = shape
    try:
        with Image.open(io.BytesIO(data), formats=PICTURES) as image:
            if image.width * image.height > most_pixels:
                raise TooLarge(
                    f"the picture has {image.width} x {image.height} pixels, and {most_pixels:,} are the most"
                )
            rgb = image if image.mode == "RGB" else image.convert("RGB")
            if rgb.size != (width, height):
                rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
            return np.array(rgb, dtype=np.uint8)
    except BadExample:
        raise
    except UnidentifiedImageError:
        raise BadExample(f"this is no picture of a known format ({', '.join(PICTURES)})") from None
    except Exception as error:  # Pillow raises many kinds for broken files, SyntaxError and struct.error among them
        raise BadExample(f"the picture is damaged: {error}") from None


def text(data: bytes, length: int) -> Array:
    """Text to uint8 [length]: its first bytes, in the encoding that was trained on, then zeros. Raises BadExample."""
    if not data.strip():
        raise BadExample("the text is empty")
    if b"\0" in data[:length]:
        raise BadExample("this is no text: there are zero bytes in it")
    return np.frombuffer(data[:length].ljust(length, b"\0"), dtype=np.uint8)


def sound(data: bytes, samples: int, rate: int) -> Array:
    """A WAV file to int16 [samples]: its middle, or it in the middle of silence, as in training. Raises BadExample."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            width, channels = file.getsampwidth(), file.getnchannels()
            its_rate, frames = file.getframerate(), file.getnframes()
            if frames > MOST_SECONDS * its_rate:
                raise TooLarge(f"the recording is longer than {MOST_SECONDS} s")
            raw = np.frombuffer(file.readframes(frames), np.uint8)
    except BadExample:
        raise
    except Exception as error:  # wave raises its own, EOFError and struct.error
        raise BadExample(f"this is no WAV file that can be read: {error}") from None
    raw = raw[: len(raw) // (width * channels) * width * channels].reshape(-1, width)
    if not len(raw):
        raise BadExample("the recording is empty")
    if width == 1:
        wide = raw[:, 0].astype(np.float64) / 128 - 1  # the one width without a sign
    else:
        padded = np.zeros((len(raw), 4), np.uint8)
        padded[:, 4 - width :] = raw  # little-endian: the high bytes are the last
        wide = padded.view("<i4")[:, 0] / 2.0**31
    mono = wide.reshape(-1, channels).mean(axis=1)
    if its_rate != rate:  # by its spectrum, so that nothing comes back as another pitch
        count = max(1, round(len(mono) * rate / its_rate))
        mono = np.fft.irfft(np.fft.rfft(mono), count) * (count / len(mono))
    start = max(0, (len(mono) - samples) // 2)
    kept = np.clip(np.round(mono[start : start + samples] * 32768), -32768, 32767).astype(np.int16)
    before = (samples - len(kept)) // 2
    return np.pad(kept, (before, samples - len(kept) - before))


def probabilities(logits: Array) -> Array:
    """Softmax over the last axis, as float64."""
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def window(text: bytearray, context: int) -> Array:
    """The end of a text as a language model takes it, uint8 [context], filled up with zeros on the right.

    Such a model says of a place what it knows from the places before it: the zeros change nothing.
    """
    return np.frombuffer(text[-context:].ljust(context, b"\0"), np.uint8)


def next_byte(logits: Array, text: bytearray, temperature: float, draw: np.random.Generator) -> bytes:
    """One byte more, from the outputs [context, 256] for the text's window.

    A temperature of 0 takes the likeliest; 1 draws as the model expects.
    """
    found = logits[min(len(text), len(logits)) - 1].astype(np.float64)
    if temperature == 0:
        return bytes([int(found.argmax())])
    with np.errstate(over="ignore"):  # nearly 0: all but the likeliest are infinitely far below
        shares = probabilities((found - found.max()) / temperature)
    return bytes([int(draw.choice(len(shares), p=shares))])


def go_on(
    logits: Callable[[Array], Array], context: int, prompt: str, length: int, temperature: float, seed: int
) -> str:
    """The prompt and `length` bytes more; `logits` takes uint8 [1, context]. The same seed gives the same text."""
    text, draw = bytearray(prompt.encode("utf-8", "surrogateescape") or b"\n"), np.random.default_rng(seed)
    for _ in range(length):
        text += next_byte(logits(window(text, context)[None])[0], text, temperature, draw)
    return text.decode(errors="replace")


class Predictor:
    """The model that a card describes, on ONNX Runtime."""

    def __init__(self, card: Path = HERE / "card.json", threads: int = 1) -> None:
        import onnxruntime  # type: ignore[import-untyped]

        self.card: Card = json.loads(card.read_text(encoding="utf-8"))
        path = card.parent / self.card["file"]
        model = path.read_bytes()
        if hashlib.sha256(model).hexdigest() != self.card["sha256"]:
            raise ValueError(f"{path} is not the file that {card.name} describes: copy it again")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.classes: list[str] = self.card["classes"]
        self.example = reader(self.card) if self.card["task"] != LANGUAGE else None

    def logits(self, examples: Array) -> Array:
        """A batch of examples to the model's outputs [N, classes]; what it says of one hangs on no other."""
        name, size = self.session.get_inputs()[0].name, 1 if self.card["facts"].get("alone") else len(examples)
        parts = [examples[at : at + size] for at in range(0, len(examples), size)]
        return np.concatenate([self.session.run(None, {name: part})[0] for part in parts])

    def predict(self, data: bytes) -> list[tuple[str, float]]:
        """A file's bytes to each class and its probability, the most probable first. Raises BadExample."""
        if self.example is None:
            raise BadExample("this model goes on with a text: give it one with --prompt")
        found = probabilities(self.logits(self.example(data)[None])[0])
        return [(self.classes[at], float(found[at])) for at in np.argsort(-found, kind="stable")]

    def go_on(self, prompt: str, length: int = 300, temperature: float = 0.7, seed: int = 0) -> str:
        """The prompt and `length` bytes more, by a language model. Raises BadExample where the model is none."""
        if self.card["task"] != LANGUAGE:
            raise BadExample(f"this model is for {self.card['task']}: it goes on with no text")
        return go_on(self.logits, self.card["input"]["shape"][1], prompt, length, temperature, seed)


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description="Say what the model in this folder takes each file for.")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--json", action="store_true", help="every class's probability, a JSON object a line")
    parser.add_argument("--prompt", help="of a language model: what the text begins with")
    parser.add_argument("--length", type=int, default=300, help="bytes to go on for")
    parser.add_argument("--temperature", type=float, default=0.7, help="0: the likeliest each time; 1: as expected")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    wanted = parser.parse_args()
    if (wanted.prompt is None) != bool(wanted.files) or min(wanted.length, wanted.temperature, wanted.seed) < 0:
        parser.error("give files, or --prompt and no files; no number is below 0")
    predictor, failed = Predictor(), False
    if wanted.prompt is not None:
        try:
            print(predictor.go_on(wanted.prompt, wanted.length, wanted.temperature, wanted.seed))
        except BadExample as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0
    for path in wanted.files:
        try:
            found = predictor.predict(path.read_bytes())
        except (BadExample, OSError) as error:
            print(f"error: {path}: {error}", file=sys.stderr)
            failed = True
            continue
        if wanted.json:
            print(json.dumps({"file": str(path), "probabilities": dict(found)}))
        else:
            print(f"{path}: {found[0][0]} ({100 * found[0][1]:.1f} %)")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
