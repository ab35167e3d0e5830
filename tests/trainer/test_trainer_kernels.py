"""LeNet's compiled kernels against torch's own layers, and the runs that go without them."""

import copy
import ctypes
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainer import device, kernels, models, train
from trainer.config import configure
from trainer.models.lenet import LeNet
from trainer.step import Stepper


@pytest.fixture(scope="module")
def compiled():
    said = []
    found = kernels.load(configure({}), said.append)
    if found is None:
        pytest.skip(f"no C compiler works here: {said}")
    return found


def two_nets(compiled, layout=torch.channels_last, seed=0):
    torch.manual_seed(seed)
    plain = LeNet().to(memory_format=layout)
    quick = copy.deepcopy(plain)
    quick.kernels = compiled
    return plain, quick


def test_a_library_that_somebody_else_may_have_put_there_is_not_loaded(compiled, tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    ours = kernels.load(configure({"cache_dir": shared}), pytest.fail)
    assert ours.path.parent == shared
    shared.chmod(0o777)
    found = kernels.load(configure({"cache_dir": shared}), pytest.fail)
    assert found.path.parent != shared and found.path.parent.stat().st_mode & 0o777 == 0o700
    shared.chmod(0o755)
    ours.path.chmod(0o666)
    ours.path.write_bytes(b"planted")
    found = kernels.load(configure({"cache_dir": shared}), pytest.fail)
    assert found.path == ours.path and found.path.stat().st_mode & 0o022 == 0
    assert found.path.read_bytes().startswith(b"\x7fELF")


# Below, at and above the lengths of vectors there are (4, 8, 16)
@pytest.mark.parametrize("count", [1, 7, 16, 17, 100])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_outputs_and_all_gradients_are_those_of_torchs_layers(compiled, count, layout):
    plain, quick = two_nets(compiled, layout, seed=count)
    images, labels = torch.randn(count, 3, 32, 32).to(memory_format=layout), torch.randint(0, 10, (count,))
    outputs = []
    for net in (plain, quick):
        outputs.append(net(images))
        F.cross_entropy(outputs[-1], labels).backward()
    assert torch.allclose(*outputs, rtol=1e-5, atol=1e-6)
    for (name, one), other in zip(plain.named_parameters(), quick.parameters(), strict=True):
        assert other.grad.shape == one.grad.shape
        assert (one.grad - other.grad).abs().max() <= 1e-5 * one.grad.abs().max(), name


def test_gradients_are_those_of_double_precision_and_of_finite_differences(compiled):
    plain, quick = two_nets(compiled)
    exact = copy.deepcopy(plain).double()
    images, labels = torch.randn(21, 3, 32, 32), torch.randint(0, 10, (21,))

    def loss(net):
        return F.cross_entropy(net(images.to(net.fc3.bias.dtype)), labels)

    loss(exact).backward()
    loss(quick).backward()
    for (name, one), other in zip(exact.named_parameters(), quick.parameters(), strict=True):
        assert (one.grad - other.grad).abs().max() <= 1e-5 * one.grad.abs().max(), name
    for name in ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"):
        weight, gradient = exact.get_parameter(name), quick.get_parameter(name).grad
        direction, step = torch.randn_like(weight), 1e-7  # so small that no maximum moves to another place
        with torch.no_grad():
            change = -loss(exact)
            weight += step * direction
            change += loss(exact)
            weight -= step * direction
        assert float(change / step) == pytest.approx(float((gradient.double() * direction).sum()), rel=1e-3, abs=1e-5)


def test_gradients_add_up_over_several_passes(compiled):
    plain, quick = two_nets(compiled)
    for net in (plain, quick):
        for count in (5, 20):
            images = torch.linspace(-1, 1, count * 3 * 32 * 32).view(count, 3, 32, 32)
            (net(images).square().sum() / count).backward()
    for one, other in zip(plain.parameters(), quick.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_equal_maxima_dead_units_and_nan_are_treated_as_torch_treats_them(compiled):
    plain, quick = two_nets(compiled)
    images = torch.randint(-1, 2, (20, 3, 32, 32)).float()
    images[0] = 0.5  # each of four places the same: the first has the gradient
    images[1] = 0.0
    with torch.no_grad():
        for net in (plain, quick):
            net.conv1.weight.copy_(torch.randint(-1, 2, net.conv1.weight.shape, generator=torch.manual_seed(1)))
            net.conv1.bias[:3] = torch.tensor([0.0, -1e6, 2.0])  # one exactly at ReLU's edge, one dead, one not
    for net in (plain, quick):
        net(images).square().sum().backward()
    assert float(plain.conv1.weight.grad[1].abs().max()) == 0.0
    for one, other in zip(plain.parameters(), quick.parameters(), strict=True):
        assert (one.grad - other.grad).abs().max() <= 1e-5 * max(1.0, float(one.grad.abs().max()))
    images[2, 0, 10, 10], images[3, 1, 20, 20] = math.nan, math.inf
    features = compiled.features(images, [quick.conv1, quick.conv2])
    layers = nn.Sequential(plain.conv1, nn.MaxPool2d(2), nn.ReLU(), plain.conv2, nn.MaxPool2d(2), nn.ReLU())
    expected = layers(images).flatten(1)
    assert bool(expected[2].isnan().any())
    assert torch.allclose(features, expected, rtol=1e-5, atol=1e-4, equal_nan=True)


def test_testing_and_what_they_are_not_made_for_is_torchs_own_bit_for_bit(compiled):
    plain, quick = two_nets(compiled)
    images = torch.randn(9, 3, 32, 32)
    assert torch.equal(plain.eval()(images), quick.eval()(images))
    plain.train(), quick.train()
    attacked = [images.clone().requires_grad_() for _ in range(2)]
    for net, inputs in zip((plain, quick), attacked, strict=True):
        net(inputs).square().sum().backward()
    assert torch.equal(attacked[0].grad, attacked[1].grad)
    assert not compiled.take(images.double()) and not compiled.take(images.bfloat16()) and not compiled.take(images[:0])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain(images), quick(images))
    assert list(quick.state_dict()) == list(plain.state_dict())


def test_only_plain_runs_on_few_threads_of_a_cpu_ask_for_them(monkeypatch):
    cpu = torch.device("cpu")
    assert kernels.fit(configure({}), cpu)
    others = ({"compile": True}, {"shard": True}, {"private_noise": 1.0}, {"precision": "bf16"}, {"threads": 8})
    assert not any(kernels.fit(configure(fields), cpu) for fields in others)
    assert not kernels.fit(configure({}), torch.device("cuda"))


SMALL = {"limit": 250, "batch_size": 100, "epochs": 2, "seed": 3, "resume": True}  # the last batch is of 50


class Killed(BaseException):
    """Stands for a kill: nothing in the trainer catches it."""


def test_a_run_trains_by_them_and_goes_on_bit_for_bit(compiled, tmp_path, monkeypatch):
    fields, used = {**SMALL, "checkpoint_every": "1steps", "device": "cpu"}, []
    features = kernels.Kernels.features

    def noted(self, images, layers):
        used.append(len(images))
        return features(self, images, layers)

    monkeypatch.setattr(kernels.Kernels, "features", noted)
    train.train(configure({**fields, "out": tmp_path / "whole"}), say=lambda line: None)
    assert used == [100, 100, 50] * 2
    take = Stepper.take

    def broken(self, *arguments):
        if self.state.epoch == 1 and self.state.step == 2:
            raise Killed
        return take(self, *arguments)

    monkeypatch.setattr(Stepper, "take", broken)
    with pytest.raises(Killed):
        train.train(configure({**fields, "out": tmp_path / "run"}), say=lambda line: None)
    monkeypatch.setattr(Stepper, "take", take)
    train.train(configure({**fields, "out": tmp_path / "run"}), say=lambda line: None)
    assert used == [100, 100, 50] * 2 + [100, 100, 50, 100, 100, 50]
    one, other = (torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("whole", "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("compiler, why", [("no-such-compiler", "No such file"), ("false", "it doesn't compile")])
def test_without_a_compiler_a_run_says_so_and_learns_the_same(compiled, tmp_path, monkeypatch, compiler, why):
    told = {}
    for name in ("with", "without"):
        if name == "without":
            monkeypatch.setenv("CC", compiler)
        lines = told[name] = []
        fields = {**SMALL, "out": tmp_path / name, "device": "cpu"}
        train.train(configure(fields), say=lines.append)
    notes = [line for line in told["without"] if line.startswith("note: ")]
    assert len(notes) == 1 and compiler in notes[0] and why in notes[0] and "half the speed" in notes[0]
    assert not [line for line in told["with"] if line.startswith("note: ")]
    one, other = (torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("with", "without"))
    assert all(torch.allclose(one[name], other[name], rtol=1e-3, atol=1e-5) for name in one)


def test_it_is_compiled_once_for_a_processor(compiled, tmp_path, monkeypatch):
    config = configure({"cache_dir": tmp_path})
    first = kernels.load(config, pytest.fail)
    made = first.path.stat().st_mtime_ns
    again = kernels.load(config, pytest.fail)
    assert again == first and again.path.stat().st_mtime_ns == made
    assert [path.name for path in tmp_path.iterdir()] == [first.path.name]
    monkeypatch.setattr(kernels, "_processor", lambda: "another one")
    assert kernels.load(config, pytest.fail).path != first.path


@pytest.mark.parametrize("flags", [("-mavx2", "-mfma"), ("-msse2", "-mno-avx")], ids=["avx2", "sse"])
def test_other_processors_vectors_give_the_same(compiled, tmp_path, monkeypatch, flags):
    import platform

    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"these vectors are of x86, and this is {platform.machine()}")
    if "avx2" in flags[0] and "avx2" not in kernels._processor():
        pytest.skip("this processor has no AVX2")
    monkeypatch.setattr(kernels, "FLAGS", ("-O3", *flags, "-shared", "-fPIC"))
    narrow = kernels.load(configure({"cache_dir": tmp_path}), pytest.fail)
    assert ctypes.CDLL(str(narrow.path)).lanes_count() == (8 if "avx2" in flags[0] else 4)
    _, one = two_nets(compiled)
    _, other = two_nets(narrow)
    images = torch.randn(21, 3, 32, 32)
    for net in (one, other):
        net(images).square().sum().backward()
    for mine, its in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine.grad, its.grad, rtol=1e-3, atol=1e-5)


def test_a_model_of_this_kind_is_built_without_them():
    shape = train.data.load(configure({}), torch.device("cpu"), print).shape
    assert models.build("lenet", shape).kernels is None


def test_seeding_keeps_nothing_where_there_is_no_gpu():
    """torch.manual_seed keeps each call, with its traceback, until CUDA starts."""
    waiting = torch.cuda._queued_calls
    before = len(waiting)
    for number in range(3):
        device.seed_all(number)
    assert len(waiting) == before
    drawn = torch.rand(4)
    device.seed_all(2)
    assert torch.equal(drawn, torch.rand(4))
    torch.manual_seed(2)
    assert torch.equal(drawn, torch.rand(4))


def test_freed_memory_is_kept_where_the_c_library_can(monkeypatch):
    asked = []
    monkeypatch.setattr(device, "keep_memory", lambda: asked.append("kept"))
    device.settle(torch.device("cpu"), 0, torch.get_num_threads())
    assert asked == ["kept"]
    monkeypatch.undo()
    # mallopt refuses a value that is too large: then nothing is kept
    assert device.keep_memory() == hasattr(ctypes.CDLL(None), "mallopt")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not device.keep_memory()
