"""A LeNet in Caffe's format, in the one reader that is left: OpenCV 4."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from exported_runs import digits, logits_of
from trainer_runs import Outcome

from trainer.errors import BadExport
from trainer.exports import caffe
from trainer.models.lenet import LeNet
from trainer.tasks import normalised

Run = Callable[..., Outcome]


def test_opencv_takes_every_digit_for_what_the_model_does(digits_run: Path, tmp_path: Path, run: Run) -> None:
    done = run("export", "--out", digits_run, "--to", "caffe", "--folder", tmp_path)
    assert done.code == 0 and "360 real inputs in OpenCV" in done.out and "every class the same" in done.out
    images, _ = digits()
    net = cv2.dnn.readNetFromCaffe(str(tmp_path / "lenet.prototxt"), str(tmp_path / "lenet.caffemodel"))
    net.setInput(cv2.dnn.blobFromImages(list(images)))  # RGB from 0 to 255: the rest is in the net
    found, expected = net.forward(), logits_of(digits_run, images)
    assert np.array_equal(found.argmax(1), expected.argmax(1))
    assert np.abs(found - expected).max() < 1e-4
    card = json.loads((tmp_path / "lenet.caffemodel.json").read_text())
    assert card["facts"]["largest_difference"] < 1e-4 and card["facts"]["same_class"] == 1


def test_the_weights_are_in_the_model_and_not_in_the_text() -> None:
    import torch

    torch.manual_seed(3)
    model = LeNet(7)
    prototxt, weights = caffe.to_caffe(model, 32)
    assert len(prototxt) < 3000 and len(weights) > 4 * sum(each.numel() for each in model.parameters())
    read = caffe.messages()["NetParameter"].FromString(weights)
    blobs = {layer.name: layer.blobs for layer in read.layer if layer.blobs}
    assert list(blobs) == ["conv1", "conv2", "fc1", "fc2", "fc3"]
    for name, (weight, bias) in blobs.items():
        layer = getattr(model, name)
        assert list(weight.shape.dim) == list(layer.weight.shape) and list(bias.shape.dim) == list(layer.bias.shape)
        assert np.array_equal(np.float32(weight.data), layer.weight.detach().numpy().ravel())
    images = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    found = caffe.read_by_opencv(prototxt, weights, images.numpy())
    np.testing.assert_allclose(found, model(normalised(images.permute(0, 3, 1, 2))).detach().numpy(), atol=1e-5)


def test_another_model_and_another_opencv_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch import nn

    with pytest.raises(BadExport, match="this run's model is Linear"):
        caffe.to_caffe(nn.Linear(3, 3), 32)
    monkeypatch.setattr(cv2, "__version__", "5.0.0")
    with pytest.raises(BadExport, match="reads Caffe's files no more"):
        caffe.read_by_opencv(b"", b"", np.zeros((1, 32, 32, 3), np.uint8))
