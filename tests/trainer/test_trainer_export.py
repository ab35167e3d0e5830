"""Every export in its own runtime, against the run's model on real inputs."""

import hashlib
import json
import shutil
import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exported_runs import digits, logits_of, png, python, without
from safetensors.torch import load_file
from trainer_runs import Outcome

from trainer import extras
from trainer.data import speech
from trainer.exports import export as exporting
from trainer.exports import int8, predict
from trainer.models.lenet import LeNet

Run = Callable[..., Outcome]


@pytest.fixture
def moved_run(digits_run: Path, tmp_path: Path) -> Path:
    """The same run where its data isn't."""
    out = tmp_path / "run"
    shutil.copytree(digits_run, out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "data": f"folder:{tmp_path / 'gone'}"}))
    return out


def on_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(path).run(None, {"examples": images})[0]


def test_safetensors_holds_the_weights(digits_run: Path, exports: Path) -> None:
    images, _ = digits()
    model = LeNet(10)
    model.load_state_dict(load_file(exports / "model.safetensors"))
    with torch.no_grad():
        prepared = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
        assert np.array_equal(model(prepared).numpy(), logits_of(digits_run, images))


def test_torch_export_takes_any_batch_of_uint8(digits_run: Path, exports: Path) -> None:
    images, _ = digits()
    module = torch.export.load(exports / "model.pt2").module()
    for count in (1, 2, 7, 360):
        found = module(torch.from_numpy(images[:count])).detach().numpy()
        np.testing.assert_allclose(found, logits_of(digits_run, images[:count]), atol=1e-4)


def test_onnx_says_what_the_model_says(digits_run: Path, exports: Path) -> None:
    images, _ = digits()
    onnx.checker.check_model(onnx.load(exports / "model.onnx"), full_check=True)
    for count in (1, 7, 360):
        expected = logits_of(digits_run, images[:count])
        found = on_onnx(exports / "model.onnx", images[:count])
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert np.array_equal(found.argmax(1), expected.argmax(1))


def test_int8_is_within_a_point_and_a_third_of_the_size(digits_run: Path, exports: Path) -> None:
    images, classes = digits()
    fp32 = (logits_of(digits_run, images).argmax(1) == classes).mean()
    found = (on_onnx(exports / "model.int8.onnx", images).argmax(1) == classes).mean()
    assert fp32 - found <= 0.01
    assert 3 * (exports / "model.int8.onnx").stat().st_size < 1.2 * (exports / "model.onnx").stat().st_size
    weights = onnx.load(exports / "model.int8.onnx").graph.initializer
    assert sum(each.data_type == onnx.TensorProto.INT8 for each in weights) >= 5
    card = json.loads((exports / "model.int8.onnx.json").read_text())
    assert card["accuracy"] == pytest.approx(found) and card["facts"]["fp32"]["accuracy"] == pytest.approx(fp32)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt2", "model.onnx", "model.int8.onnx"])
def test_the_card_says_what_the_file_is(digits_run: Path, exports: Path, name: str) -> None:
    card = json.loads((exports / f"{name}.json").read_text())
    content = (exports / name).read_bytes()
    assert (card["file"], card["size_bytes"]) == (name, len(content))
    assert card["sha256"] == hashlib.sha256(content).hexdigest()
    assert card["classes"] == list("0123456789") and card["input"]["shape"] == ["batch", 32, 32, 3]
    assert card["accuracy"] > 0.95 and card["tested_on"] == "360 test images of digits"
    assert card["run"]["config"] == json.loads((digits_run / "config.json").read_text())


def test_an_export_that_answers_otherwise_is_refused(
    digits_run: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "answer", lambda running, batch: np.full((len(batch), 10), np.nan))
    done = run("export", "--out", digits_run, "--to", "onnx", "--folder", tmp_path / "e")
    assert done.code == 1 and "differs from the model" in done.err and not (tmp_path / "e").exists()


def test_an_int8_that_lost_more_is_said_and_left_out_of_the_bundle(
    digits_run: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = int8._measure

    def worse(source: object, model: bytes, **more: bool) -> int8.Measured:
        found = measure(source, model, **more)  # type: ignore[arg-type]
        return replace(found, accuracy=found.accuracy - 0.02) if len(model) < 200_000 else found

    monkeypatch.setattr(int8, "_measure", worse)
    done = run("export", "--out", digits_run, "--to", "int8,edge", "--folder", tmp_path)
    assert done.code == 0 and "NOT within a point" in done.out
    assert json.loads((tmp_path / "edge/card.json").read_text())["file"] == "model.onnx"
    assert "int8 has lost too much" in (tmp_path / "edge/README.md").read_text()


def test_without_the_data_it_is_compared_on_random_inputs_and_int8_refused(
    moved_run: Path, tmp_path: Path, run: Run
) -> None:
    done = run("export", "--out", moved_run, "--to", "onnx,edge", "--folder", tmp_path / "e")
    assert done.code == 0 and "random examples" in done.out and "100 random inputs" in done.out
    card = json.loads((tmp_path / "e/edge/card.json").read_text())
    assert card["file"] == "model.onnx" and card["tested_on"].endswith("when it was trained")
    done = run("export", "--out", moved_run, "--to", "int8", "--folder", tmp_path / "e")
    assert done.code == 2 and "--data" in done.err
    done = run("export", "--out", moved_run, "--to", "int8", "--folder", tmp_path / "e", "--data", "digits")
    assert done.code == 0 and (tmp_path / "e/model.int8.onnx").exists()


def test_what_cannot_be_exported_is_said_in_a_line(
    digits_run: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "there is no export onx" in run("export", "--out", digits_run, "--to", "onnx,onx").err
    assert "holds no run" in run("export", "--out", tmp_path, "--to", "onnx").err
    (tmp_path / "file").write_text("")
    done = run("export", "--out", digits_run, "--to", "safetensors", "--folder", tmp_path / "file")
    assert done.code == 2 and "cannot write" in done.err
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    done = run("export", "--out", digits_run, "--to", "onnx", "--folder", tmp_path)
    assert done.code == 2 and "pip install 'orchestrate[deploy]'" in done.err


OWN = """
from torch import nn

class Counts(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.last = nn.Linear(shape.vocabulary, shape.classes)

    def forward(self, text):
        seen = nn.functional.one_hot(text, self.last.in_features).float().mean(1)
        return self.last(seen * 2 if text.sum() > 0 else seen)
"""


def test_a_model_that_goes_by_values_and_has_no_embedding_is_refused_where_that_matters(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    for name in ("long", "short"):
        for at in range(5):
            Path("texts", name).mkdir(parents=True, exist_ok=True)
            Path("texts", name, f"{at}.txt").write_text(name)
    words = ("--data", "textfolder:texts", "--model", "own.py:Counts", "--epochs", 1, "--context", 8)
    done = run("train", "--out", "run", *words)
    assert done.code == 0 and "no report" not in done.out, done.err
    assert run("report", "--out", "run").code == 0
    done = run("explain", "--out", "run")
    assert done.code == 2 and "none. Take a layer torch.nn.Embedding" in done.err
    done = run("export", "--out", "run", "--to", "onnx")
    assert done.code == 2 and "can't be made a graph" in done.err and done.err.count("\n") == 1  # torch prints pages


# ---- the edge bundle


def test_the_bundle_runs_where_there_is_no_torch(digits_run: Path, exports: Path, tmp_path: Path) -> None:
    bundle, env = tmp_path / "bundle", without(tmp_path / "none", "torch", "torchvision", "trainer")
    shutil.unpack_archive(exports / "edge.zip", tmp_path / "unpacked")
    (tmp_path / "unpacked/edge").rename(bundle)
    images, _ = digits()
    expected = logits_of(digits_run, images[:20]).argmax(1)
    for at in range(20):
        (tmp_path / f"{at}.png").write_bytes(png(images[at]))
    done = python(bundle / "predict.py", "--json", *(tmp_path / f"{at}.png" for at in range(20)), cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line)["probabilities"] for line in done.stdout.splitlines()]
    assert [max(each, key=each.get) for each in answers] == [str(each) for each in expected]
    assert all(sum(each.values()) == pytest.approx(1) for each in answers)
    listed = {path.name for path in bundle.iterdir() if path.name != "__pycache__"}
    assert listed == {"model.int8.onnx", "card.json", "predict.py", "README.md", "requirements.txt"}
    assert "onnxruntime>=1.18" in (bundle / "requirements.txt").read_text()
    assert onnx.load(bundle / "model.int8.onnx").ir_version <= 10  # what 1.18 reads
    assert python("-c", "import torch", cwd=tmp_path, env=env).returncode == 1  # the test itself can fail


def test_the_bundle_tells_a_bad_file_and_a_damaged_model(exports: Path, tmp_path: Path) -> None:
    bundle, env = tmp_path / "bundle", without(tmp_path / "none", "torch", "trainer")
    shutil.copytree(exports / "edge", bundle)
    (tmp_path / "a.txt").write_text("no picture")
    done = python(bundle / "predict.py", "a.txt", "gone.png", cwd=tmp_path, env=env)
    assert done.returncode == 2 and "no picture of a known format" in done.stderr and "gone.png" in done.stderr
    with (bundle / "model.int8.onnx").open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff\xff\xff")
    assert "not the file that card.json describes" in python(bundle / "predict.py", "a", cwd=tmp_path, env=env).stderr


# ---- reading what people have


def wav(path: Path, rate: int, width: int, channels: int, seconds: float) -> bytes:
    """A rising tone, in noise."""
    at = np.arange(int(rate * seconds)) / rate
    tone = 0.5 * np.sin(2 * np.pi * (300 + 500 * at) * at)[:, None] * np.linspace(1, 0.5, channels)
    tone += np.random.default_rng(0).normal(0, 0.05, tone.shape)
    whole = np.round(tone.clip(-1, 0.99) * 2 ** (8 * width - 1)).astype(np.int64) + (128 if width == 1 else 0)
    raw = whole.astype("<i8").reshape(-1, 1).view(np.uint8)[:, :width].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(raw)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("rate", "width", "channels", "seconds"),
    [(16_000, 2, 1, 1.0), (44_100, 2, 2, 1.7), (8000, 1, 1, 0.4), (48_000, 3, 2, 1.0), (22_050, 4, 1, 0.9)],
)
def test_a_recording_is_read_as_the_training_reads_it(
    tmp_path: Path, rate: int, width: int, channels: int, seconds: float
) -> None:
    data = wav(tmp_path / "a.wav", rate, width, channels, seconds)
    theirs = speech.middle(speech.resampled(*speech.read_wave(str(tmp_path / "a.wav"))), 16_000)
    assert np.array_equal(predict.sound(data, 16_000, 16_000), theirs) and theirs.any()


def test_bad_recordings_and_texts_are_refused(tmp_path: Path) -> None:
    data = wav(tmp_path / "a.wav", 8000, 2, 1, 0.2)
    slow = data[:24] + (1).to_bytes(4, "little") + data[28:]  # one sample a second: half an hour
    for bad in (b"", b"RIFF", data[:30], b"\x89PNG" * 20):
        with pytest.raises(predict.BadExample):
            predict.sound(bad, 16_000, 16_000)
    with pytest.raises(predict.TooLarge, match="longer than"):
        predict.sound(slow, 16_000, 16_000)
    for bad in (b"", b" \n", b"\x89PNG\0\0"):
        with pytest.raises(predict.BadExample):
            predict.text(bad, 10)
    assert bytes(predict.text("héllo".encode(), 10)) == "héllo".encode() + bytes(4)
    with pytest.raises(predict.BadExample, match="no classes to tell"):
        predict.reader({"task": "language modelling", "input": {"shape": ["batch", 10]}})


def test_a_recording_goes_through_a_bundle_of_a_sound_model(tmp_path: Path, run: Run) -> None:
    out = tmp_path / "run"
    words = ("--data", "tones", "--epochs", "1", "--limit", "100", "--batch-size", "25")
    assert run("train", "--out", out, *words).code == 0
    done = run("export", "--out", out, "--to", "edge")
    assert done.code == 0, done.err
    found = predict.Predictor(out / "exports/edge/card.json").predict(wav(tmp_path / "a.wav", 8000, 2, 1, 0.5))
    assert {name for name, _ in found} == {"falling", "noise", "pulsing", "rising", "steady", "warbling"}
    assert sum(each for _, each in found) == pytest.approx(1) and found[0][1] >= found[-1][1]
