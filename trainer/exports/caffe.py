"""Caffe: a trained LeNet as prototxt and caffemodel.

Caffe itself is no more to be had; what reads its files is: OpenCV's dnn module up to version 4, and converters of many
embedded chips. The messages are built here from the field numbers of the published caffe.proto, no more of it than a
LeNet needs.
"""

from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from trainer.errors import BadExport
from trainer.exports.onnx_model import Array
from trainer.extras import need
from trainer.models.lenet import LeNet

if TYPE_CHECKING:
    from google.protobuf.message import Message  # type: ignore[import-untyped]

# Each message's fields: name, number, type; "*" for repeated ones, a capital for a message. As in caffe.proto.
MESSAGES = {
    "BlobShape": [("dim", 1, "int64*")],
    "BlobProto": [("shape", 7, "BlobShape"), ("data", 5, "float*")],
    "InputParameter": [("shape", 1, "BlobShape*")],
    "PowerParameter": [("power", 1, "float"), ("scale", 2, "float"), ("shift", 3, "float")],
    "ConvolutionParameter": [("num_output", 1, "uint32"), ("kernel_size", 4, "uint32*")],
    "PoolingParameter": [("pool", 1, "PoolMethod"), ("kernel_size", 2, "uint32"), ("stride", 3, "uint32")],
    "InnerProductParameter": [("num_output", 1, "uint32")],
    "LayerParameter": [
        ("name", 1, "string"),
        ("type", 2, "string"),
        ("bottom", 3, "string*"),
        ("top", 4, "string*"),
        ("blobs", 7, "BlobProto*"),
        ("convolution_param", 106, "ConvolutionParameter"),
        ("inner_product_param", 117, "InnerProductParameter"),
        ("pooling_param", 121, "PoolingParameter"),
        ("power_param", 122, "PowerParameter"),
        ("input_param", 143, "InputParameter"),
    ],
    "NetParameter": [("name", 1, "string"), ("layer", 100, "LayerParameter*")],
}
POOL_METHODS = ("MAX", "AVE", "STOCHASTIC")

Layer = dict[str, Any]


def to_caffe(model: nn.Module, side: int) -> tuple[bytes, bytes]:
    """prototxt and caffemodel of a LeNet. Raises BadExport for any other model, MissingPackage."""
    need("Caffe's format", "caffe", "google.protobuf", "cv2")
    if not isinstance(model, LeNet):
        raise BadExport(
            f"only lenet is written in Caffe's format, and this run's model is {type(model).__name__}",
            "Export it as onnx, which every runtime of today reads.",
        )
    from google.protobuf import text_format  # type: ignore[import-untyped]

    layers = _layers(model, side)
    net = messages()["NetParameter"](name="LeNet", layer=[{**layer, "blobs": []} for layer in layers])
    weights = messages()["NetParameter"](name="LeNet", layer=layers)
    prototxt = "# Input: RGB pixels from 0 to 255, [batch, 3, height, width]. Output: logits.\n"
    return (prototxt + text_format.MessageToString(net)).encode(), weights.SerializeToString()


def _layers(model: LeNet, side: int) -> list[Layer]:
    """The layers in their order, each on the one before; with their weights."""
    layers: list[Layer] = [
        {"name": "data", "type": "Input", "top": ["data"], "input_param": {"shape": [{"dim": [1, 3, side, side]}]}},
        # (x / 255 - 0.5) / 0.5, as the training did it
        {"name": "normalised", "type": "Power", "power_param": {"power": 1, "scale": 2 / 255, "shift": -1}},
    ]
    for number, conv in enumerate((model.conv1, model.conv2), 1):
        sizes = {"num_output": conv.out_channels, "kernel_size": [conv.kernel_size[0]]}
        layers += [
            {"name": f"conv{number}", "type": "Convolution", "convolution_param": sizes, "blobs": _blobs(conv)},
            {"name": f"pool{number}", "type": "Pooling", "pooling_param": {"pool": 0, "kernel_size": 2, "stride": 2}},
            {"name": f"relu{number}", "type": "ReLU"},
        ]
    for number, full in enumerate((model.fc1, model.fc2, model.fc3), 1):
        outputs = {"num_output": full.out_features}
        layers.append(
            {"name": f"fc{number}", "type": "InnerProduct", "inner_product_param": outputs, "blobs": _blobs(full)}
        )
        if full is not model.fc3:
            layers.append({"name": f"relu{number + 2}", "type": "ReLU"})
    for below, layer in pairwise(layers):
        layer["bottom"], layer["top"] = [below["name"]], [layer["name"]]
    return layers


def _blobs(layer: nn.Conv2d | nn.Linear) -> list[Layer]:
    return [
        {"shape": {"dim": list(value.shape)}, "data": value.detach().float().flatten().tolist()}
        for value in (layer.weight, layer.bias)
        if value is not None
    ]


def read_by_opencv(prototxt: bytes, caffemodel: bytes, examples: Array) -> Array:
    """What OpenCV says of uint8 pictures [N, height, width, 3], reading the two files. Raises BadExport."""
    import cv2

    if int(cv2.__version__.partition(".")[0]) >= 5:
        raise BadExport(
            f"OpenCV {cv2.__version__} reads Caffe's files no more", "pip install 'opencv-python-headless>=4.12,<5'"
        )
    net = cv2.dnn.readNetFromCaffe(np.frombuffer(prototxt, np.uint8), np.frombuffer(caffemodel, np.uint8))
    net.setInput(np.ascontiguousarray(examples.transpose(0, 3, 1, 2), dtype=np.float32))
    return np.asarray(net.forward())


@cache
def messages() -> "dict[str, type[Message]]":
    """The message classes of MESSAGES, in a pool of their own: another caffe.proto may be loaded beside it."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    methods = [{"name": name, "number": number} for number, name in enumerate(POOL_METHODS)]
    file.enum_type.add(name="PoolMethod", value=methods)
    kinds = descriptor_pb2.FieldDescriptorProto
    for message, fields in MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, number, kind in fields:
            repeated, bare = kind.endswith("*"), kind.rstrip("*")
            field = described.field.add(name=name, number=number)
            field.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            if bare[0].isupper():
                field.type = kinds.TYPE_ENUM if bare == "PoolMethod" else kinds.TYPE_MESSAGE
                field.type_name = f".caffe.{bare}"
            else:
                field.type = getattr(kinds, f"TYPE_{bare.upper()}")
            if name in ("data", "dim"):
                field.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}")) for name in MESSAGES}
