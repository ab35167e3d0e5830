"""Text: how it is cut, by which file it is told apart, and what a language model makes of it."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from browsing import violations
from exported_runs import python, without
from served_models import serving

from trainer import data
from trainer.config import configure
from trainer.data import stdlib
from trainer.errors import BadData
from trainer.evaluate import open_run
from trainer.exports import int8, predict
from trainer.serving import app, model

CPU = torch.device("cpu")


@pytest.fixture
def load(tmp_path):
    def load_data(name, **fields):
        config = configure({"data": name, "cache_dir": tmp_path / "cache", **fields})
        return data.load(config, CPU, lambda line: None)

    return load_data


def bytes_of(rows):
    return bytes(rows.flatten().tolist())


def test_a_text_is_cut_into_windows_whose_targets_are_one_byte_on(tmp_path, load):
    text = bytes(range(33, 126)) * 20  # 1,860 bytes: 1,674 to learn, 186 to test
    (tmp_path / "a.txt").write_bytes(text)
    found = load(f"text:{tmp_path / 'a.txt'}", context=50)
    assert (len(found.train), len(found.test)) == (33, 3)
    assert bytes_of(found.train.inputs) == text[: 33 * 50]
    assert bytes_of(found.train.targets) == text[1 : 33 * 50 + 1]
    assert bytes_of(found.test.inputs) == text[1674 : 1674 + 150]
    assert (found.classes, found.shape.classes, found.shape.vocabulary) == ((), 256, 256)
    assert (
        found.train.inputs.untyped_storage().data_ptr() == found.test.targets.untyped_storage().data_ptr()
    )  # one copy


def test_a_folder_of_texts_is_read_in_the_order_of_the_names(tmp_path, load):
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    for name, letter in (("b.txt", b"b"), ("deep/c.txt", b"c"), ("a.txt", b"a"), ("no.md", b"x")):
        (tmp_path / "texts" / name).write_bytes(letter * 400)
    found = load(f"text:{tmp_path / 'texts'}", context=8)
    assert bytes_of(found.train.inputs) == (b"a" * 400 + b"b" * 400 + b"c" * 272)


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "does not exist"), (b"", "is empty"), (b"short", "too short: 5 bytes")],
)
def test_a_text_that_will_not_do_is_refused_in_words(tmp_path, load, content, told):
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(BadData, match=told):
        load(f"text:{tmp_path / 'a.txt'}")


def test_pythons_own_documentation_is_a_text_of_half_a_megabyte_or_more(load):
    found = load("pydoc")
    assert found.train.count > 300_000
    assert b"The assert statement" in bytes_of(found.train.inputs) or b"assert" in bytes_of(found.train.inputs)
    assert load("pydoc").fingerprint == found.fingerprint


def test_texts_by_class_are_cut_and_filled_up(tmp_path, load):
    for name, letter in (("long", b"l"), ("short", b"s")):
        (tmp_path / "texts" / name).mkdir(parents=True)
        for at in range(10):
            (tmp_path / "texts" / name / f"{at}.txt").write_bytes(letter * (100 if name == "long" else 3))
    found = load(f"textfolder:{tmp_path / 'texts'}", context=10)
    assert (found.classes, len(found.train), len(found.test)) == (("long", "short"), 18, 2)
    assert {bytes_of(row) for row in found.train.inputs} == {b"l" * 10, b"sss" + b"\0" * 7}


def test_no_piece_of_the_standard_library_is_learnt_and_tested(load):
    found = load("stdlib")
    assert (found.classes, found.shape.inputs) == (stdlib.PACKAGES, (128,))
    assert len(torch.bincount(found.train.targets)) == len(torch.bincount(found.test.targets)) == len(stdlib.PACKAGES)
    assert torch.bincount(found.train.targets).min() > 300
    learnt = {bytes_of(row) for row in found.train.inputs}
    assert sum(bytes_of(row) in learnt for row in found.test.inputs) < 0.02 * len(found.test)  # licences, say


# ---- what a model makes of it


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """A run that has learnt the one sentence of its text by heart."""
    from trainer.cli import main

    folder = tmp_path_factory.mktemp("squares")
    (folder / "text.txt").write_text("one two three four five six seven " * 600)
    arguments = ("--context", 32, "--epochs", 6, "--batch-size", 16, "--lr", 0.01)
    options = ("--model-options", "width=32,layers=1,heads=2", "--out", folder / "run")
    assert main(["train", "--data", f"text:{folder}/text.txt", *map(str, (*arguments, *options))]) == 0
    return folder / "run"


def test_a_sentence_is_learnt_by_heart_and_gone_on_with(squares, run):
    outcome = run("generate", "--out", squares, "--prompt", "one two ", "--length", 26, "--temperature", 0)
    assert outcome.out == "one two three four five six seven \n"


def test_the_same_seed_draws_the_same_text(squares, run):
    drawn = [run("generate", "--out", squares, "--temperature", 5, "--seed", seed).out for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_only_a_language_model_goes_on_with_a_text(digits_run, run):
    outcome = run("generate", "--out", digits_run)
    assert outcome.code == 2
    assert "is for image classification: it tells no text" in outcome.err


@pytest.fixture(scope="module", params=["lstm", "gru"])
def recurrent(request, squares, tmp_path_factory):
    """A recurrent net that has learnt the same sentence."""
    from trainer.cli import main

    out = tmp_path_factory.mktemp("recurrent") / "run"
    options = f"width=32,cell={request.param}"
    arguments = ("--model", "rnn", "--model-options", options, "--epochs", 4, "--lr", 0.02, "--no-resume")
    assert main(["train", "--config", str(squares / "config.json"), "--out", str(out), *map(str, arguments)]) == 0
    return out


def test_in_eight_bits_a_transformer_says_the_same(squares, run, tmp_path):
    assert "MatMulInteger" in in_eight_bits(squares, run, tmp_path)


def test_in_eight_bits_a_recurrent_net_says_the_same(recurrent, run, tmp_path):
    """Of a GRU the weights alone are in 8 bits: ONNX Runtime computes it in floating point."""
    kinds = in_eight_bits(recurrent, run, tmp_path)
    assert "DynamicQuantizeLSTM" in kinds or {"DequantizeLinear", "GRU"} <= kinds


def in_eight_bits(folder, run, tmp_path):
    """The kinds of nodes of the run in int8, which is as good as it was, and all of whose weights are int8."""
    import onnx
    import onnxruntime

    done = run("export", "--out", folder, "--folder", tmp_path, "--to", "onnx,int8")
    assert done.code == 0, done.err
    assert re.search(r"perplexity \d\.\d{3} \(fp32 \d\.\d{3}\), accuracy .* an example", done.out), done.out
    assert "NOT within" not in done.out
    opened, found = open_run(folder, {}), {}
    inputs, targets = opened.data.test.inputs.numpy(), opened.data.test.targets.numpy().astype(int)
    for name in ("model.onnx", "model.int8.onnx"):
        running = onnxruntime.InferenceSession(tmp_path / name)  # each text alone, as it is used
        logits = np.concatenate([running.run(None, {"examples": each[None]})[0] for each in inputs])
        given = predict.probabilities(logits)
        loss = -np.log(np.take_along_axis(given, targets[..., None], -1)).mean()
        found[name] = (float((logits.argmax(-1) == targets).mean()), float(np.exp(loss)))
    told = json.loads(run("test", "--out", folder, "--json").out)
    assert found["model.onnx"] == pytest.approx((told["accuracy"], told["perplexity"]), rel=1e-4)
    assert told["accuracy"] > 0.8, "it has learnt too little for anything to be lost"
    facts = json.loads((tmp_path / "model.int8.onnx.json").read_text())["facts"]
    assert (facts["int8"]["accuracy"], facts["int8"]["perplexity"]) == pytest.approx(found["model.int8.onnx"], rel=1e-3)
    assert found["model.int8.onnx"][0] >= found["model.onnx"][0] - 0.01
    assert found["model.int8.onnx"][1] <= 1.01 * found["model.onnx"][1]
    assert (tmp_path / "model.int8.onnx").stat().st_size < 0.6 * (tmp_path / "model.onnx").stat().st_size
    graph = onnx.load(tmp_path / "model.int8.onnx").graph
    floats = [each for each in graph.initializer if each.data_type == onnx.TensorProto.FLOAT]
    assert max(int(np.prod(each.dims)) for each in floats) < 1024
    return {node.op_type for node in graph.node}


def test_an_int8_whose_perplexity_rises_is_no_good_one():
    fp32 = int8.Measured(accuracy=0.5, size_bytes=4, ms=1.0, perplexity=3.0)
    for perplexity, accuracy, good in ((3.02, 0.495, True), (3.04, 0.5, False), (3.0, 0.48, False)):
        made = int8.Quantised(b"", replace(fp32, accuracy=accuracy, perplexity=perplexity), fp32)
        assert made.good is good and ("NOT within" in made.in_words()) is not good


@pytest.fixture(scope="module")
def bundle(squares, tmp_path_factory):
    """The same as a folder that runs on ONNX Runtime alone."""
    from trainer.cli import main

    folder = tmp_path_factory.mktemp("bundle")
    assert main(["export", "--out", str(squares), "--to", "edge", "--folder", str(folder)]) == 0
    return folder / "edge"


def test_it_goes_on_in_a_bundle_without_torch_as_it_does_here(squares, bundle, run, tmp_path):
    arguments = ("--prompt", "one two ", "--length", 40, "--temperature", 0)
    here = run("generate", "--out", squares, *arguments)
    there = python("predict.py", *arguments, cwd=bundle, env=without(tmp_path, "torch"))
    assert (there.stdout, there.stderr) == (here.out, "")
    card, page = json.loads((bundle / "card.json").read_text()), (bundle / "README.md").read_text()
    assert (card["kind"], card["file"], card["accuracy"]) == ("int8", "model.int8.onnx", None)
    told = "perplexity {:.3f} (fp32 {:.3f})".format(*(card["facts"][each]["perplexity"] for each in ("int8", "fp32")))
    assert f"kB. int8: {told}" in page
    found, texts = (
        predict.Predictor(bundle / "card.json"),
        np.random.default_rng(0).integers(32, 127, (4, 32), np.uint8),
    )
    alone = np.concatenate([found.logits(text[None]) for text in texts])
    assert np.array_equal(found.logits(texts), alone)  # what it says of a text hangs on no other
    assert here.err.startswith("weights ") and "after epoch 6" in here.err
    wrong = python("predict.py", "README.md", cwd=bundle, env=without(tmp_path / "2", "torch"))
    assert wrong.returncode == 2 and "give it one with --prompt" in wrong.stderr
    assert '--prompt "The "' in page


@pytest.mark.parametrize("of", ["squares", "bundle"])
def test_a_language_model_is_served_and_goes_on_with_each_prompt(of, request, squares, run, tmp_path):
    folder = request.getfixturevalue(of)
    with serving(model.load(folder, "cpu", 1, 1000), app.Limits(length=60)) as client:
        whole = client.post("/generate", {"prompt": "one two ", "length": 26, "temperature": 0})
        assert whole[0] == 200 and whole[1]["text"] == "one two three four five six seven "
        asks = [{"prompt": "one ", "length": 30, "temperature": 2, "seed": seed} for seed in (1, 2, 1)]
        with ThreadPoolExecutor(3) as pool:  # together, and each as if it were alone
            told = [each[1]["text"] for each in pool.map(lambda ask: client.post("/generate", ask), asks)]
        assert told[0] == told[2] != told[1]
        arguments = ("--prompt", "one ", "--length", 30, "--temperature", 2, "--seed", 1)
        if of == "squares":
            printed = run("generate", "--out", squares, *arguments).out
        else:
            printed = python("predict.py", *arguments, cwd=folder, env=without(tmp_path, "torch")).stdout
        assert printed == told[0] + "\n"
        assert client.metric("predictions_total") == 26 + 3 * 30
        for ask, word in (
            ({"prompt": "a", "length": 61}, "length 61 is more than 60 bytes"),
            ({"length": 0}, "length: "),
            ({"prompt": 7}, "prompt: "),
            ({"temperature": -1}, "temperature: "),
            ({"seed": "x"}, "seed: "),
            ({"promt": "a"}, "promt: "),
            ("one two", "the body: "),
        ):
            status, answer = client.post("/generate", ask)
            assert (status == 400 and word in answer["error"] and "Send JSON" in answer["hint"]) or "61" in word, answer
        assert client.post("/predict", {})[0] == 404
        assert "POST /generate" in client.post("/predict", {})[1]["hint"]
        health = json.loads(client("GET", "/health")[2])
        assert (health["task"], health["classes"], health["accuracy"]) == ("language modelling", [], None)


def test_in_a_browser_a_text_is_gone_on_with(squares, browser):
    with serving(model.load(squares, "cpu", 1, 1000), app.Limits()) as client:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{client.port}/")
        page.get_by_label("What the text begins with").fill("one two ")
        page.get_by_role("button", name="Go on").click()
        page.get_by_text("It goes on:").wait_for()
        assert page.locator("#written").inner_text().startswith("one two ")
        assert len(page.locator("#written").text_content()) == 308
        assert violations(page) == []
        context.close()


def test_a_text_is_told_by_its_class(tmp_path, run):
    for name, letter in (("long", b"l"), ("short", b"s")):
        (tmp_path / "texts" / name).mkdir(parents=True)
        for at in range(20):
            (tmp_path / "texts" / name / f"{at}.txt").write_bytes(letter * (at + 3))
    recipe = ("--context", 16, "--epochs", 8, "--batch-size", 4, "--model-options", "width=16")
    assert run("train", "--data", f"textfolder:{tmp_path / 'texts'}", *recipe, "--out", tmp_path / "run").code == 0
    with serving(model.load(tmp_path / "run", "cpu", 1, 1000)) as client:
        assert client.predict(b"lllll")[1]["class"] == "long" and client.predict(b"ssss")[1]["class"] == "short"
        status, answer = client.predict(b"l\0l")
        assert status == 400 and "no text" in answer["error"]


def test_perplexity_and_bits_a_byte_are_told_and_no_confusion_of_bytes(squares, run):
    page = run("test", "--out", squares).out
    assert "bits per byte" in page and "confusion" not in page and "calibration error" in page
    told = json.loads(run("test", "--out", squares, "--json").out)
    assert told["perplexity"] == pytest.approx(2 ** told["bits_per_byte"])
    assert told["perplexity"] < 1.3  # 256 when nothing is learnt
    assert told["confusion"] == []


def test_another_length_of_text_is_another_run(squares, run):
    outcome = run("train", "--config", squares / "config.json", "--context", 64)
    assert outcome.code == 2
    assert "context was 32, is 64" in outcome.err
