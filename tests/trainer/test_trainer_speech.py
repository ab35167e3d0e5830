"""Sound: files of every width and rate come out as the same waveform; the tones are what they are called."""

import wave

import numpy as np
import pytest
import torch

from trainer import data
from trainer.config import configure
from trainer.data import speech
from trainer.errors import BadData

CPU = torch.device("cpu")


def write_wave(path, sound, rate_hz=16_000, width=2, channels=1):
    """`sound` from -1 to 1, as PCM."""
    whole = np.round(np.asarray(sound) * (2 ** (8 * width - 1) - 1)).astype("<i4")
    whole = np.repeat(whole, channels)
    raw = (whole + 128).astype(np.uint8) if width == 1 else whole.view(np.uint8).reshape(-1, 4)[:, :width]
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate_hz, 0, "NONE", ""))
        file.writeframes(raw.tobytes())


def sine(pitch_hz, seconds, rate_hz):
    return 0.5 * np.sin(2 * np.pi * pitch_hz * np.arange(round(seconds * rate_hz)) / rate_hz)


@pytest.mark.parametrize(("width", "channels"), [(1, 1), (2, 1), (2, 2), (3, 1), (4, 2)])
def test_every_width_of_pcm_is_the_same_sound(tmp_path, width, channels):
    sound = sine(440, 0.1, 16_000)
    write_wave(tmp_path / "a.wav", sound, width=width, channels=channels)
    read, rate_hz = speech.read_wave(str(tmp_path / "a.wav"))
    assert rate_hz == 16_000
    assert np.abs(read - sound).max() < (0.01 if width == 1 else 1e-4)


@pytest.mark.parametrize("rate_hz", [8_000, 44_100])
def test_a_recording_of_another_rate_is_the_same_pitch(rate_hz):
    changed = speech.resampled(sine(1000, 1, rate_hz), rate_hz)
    assert np.abs(changed - sine(1000, 1, 16_000)).max() < 1e-6


def test_what_is_above_8_khz_does_not_come_back_lower():
    assert np.abs(speech.resampled(sine(12_000, 1, 44_100), 44_100)).max() < 1e-6


def test_the_middle_is_kept_and_silence_is_put_around():
    assert speech.middle(np.array([0.25, 0.5, -0.5, -2.0]), 2).tolist() == [16384, -16384]
    assert speech.middle(np.array([0.5]), 4).tolist() == [0, 16384, 0, 0]
    assert speech.middle(np.array([-2.0, 2.0]), 2).tolist() == [-32768, 32767]


@pytest.fixture
def recordings(tmp_path):
    """Twelve recordings each of a low and a high tone, in noise, of several lengths and rates."""
    draw = np.random.default_rng(5)
    for name, pitch_hz in (("high", 1800), ("low", 300)):
        (tmp_path / "sounds" / name).mkdir(parents=True)
        for at in range(12):
            rate_hz = (8_000, 16_000, 22_050)[at % 3]
            sound = sine(pitch_hz * draw.uniform(0.8, 1.2), draw.uniform(0.3, 0.8), rate_hz)
            noise = draw.normal(0, 0.05, len(sound))
            write_wave(tmp_path / "sounds" / name / f"{at}.wav", np.clip(sound + noise, -1, 1), rate_hz)
    return tmp_path / "sounds"


def test_a_folder_of_recordings_is_learnt_from(recordings, run, tmp_path):
    arguments = ("--clip-s", 0.5, "--batch-size", 6, "--epochs", 8, "--out", tmp_path / "run")
    outcome = run("train", "--data", f"speech:{recordings}", *arguments)
    assert outcome.code == 0
    assert "sounds: 22 training and 2 test recordings, 2 classes" in outcome.out
    assert "test accuracy 1.0000" in outcome.out


def test_recordings_that_cannot_be_read_are_named(recordings, tmp_path):
    (recordings / "low" / "3.wav").write_bytes(b"RIFFnothing")
    (recordings / "high" / "4.wav").write_bytes(b"")
    config = configure({"data": f"speech:{recordings}", "cache_dir": tmp_path / "cache"})
    with pytest.raises(BadData) as caught:
        data.load(config, CPU, print)
    assert "low/3.wav" in str(caught.value) and "high/4.wav" in str(caught.value)
    assert "ffmpeg" in str(caught.value)


def test_tones_are_the_same_in_every_run_and_as_they_are_called(tmp_path):
    found = [
        data.load(configure({"data": "tones", "cache_dir": tmp_path / name}), CPU, print) for name in ("one", "other")
    ]
    assert torch.equal(found[0].train.inputs, found[1].train.inputs)
    tones = found[0]
    assert (tones.shape.inputs, tones.shape.sample_rate, len(tones.train), len(tones.test)) == (
        (4000,),
        8000,
        1200,
        300,
    )
    assert torch.bincount(tones.test.targets).tolist() == [50] * 6
    assert _mean_rise(tones, "rising") > 100 > abs(_mean_rise(tones, "steady")) and _mean_rise(tones, "falling") < -100


def _mean_rise(tones, name):
    """How many hertz the loudest pitch of the sound's second half is above that of the first, on the mean."""
    rises = []
    for sound in tones.train.inputs[tones.train.targets == tones.classes.index(name)].numpy():
        loud = np.flatnonzero(
            np.convolve(sound.astype(float) ** 2, np.ones(200), "same") > 0.3 * 200 * sound.std() ** 2
        )
        halves = np.array_split(sound[loud[0] : loud[-1]].astype(float), 2)
        rises.append(np.subtract(*(np.abs(np.fft.rfft(half, 8000)).argmax() for half in halves[::-1])))
    return np.mean(rises)
