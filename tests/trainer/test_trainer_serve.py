"""Serving, by real requests to a real server: alone, under a load of good and bad ones, and while it is stopped."""

import asyncio
import html.parser
import http.client
import json
import re
import shutil
import socket
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from browsing import violations
from exported_runs import digits, logits_of, png, without
from PIL import Image
from served_models import Client, serving
from trainer_runs import ROOT, Outcome, start

from trainer.errors import BadExport
from trainer.serving import app
from trainer.serving.batching import Batcher
from trainer.serving.model import Served
from trainer.serving.server import listen

Run = Callable[..., Outcome]

HUGE = 5000  # pixels a side: 25 million in 25 kB


class Server:
    """`trainer serve` as a process of its own."""

    def __init__(self, out: Path, *more: object, env: dict[str, str] | None = None) -> None:
        self.process = start("serve", "--out", out, "--port", 0, *more, **(env or {}))
        self.lines: list[str] = []
        self.told = False
        while "serving on" not in "".join(self.lines):
            line = self.process.stdout.readline()
            assert line, self.process.communicate()[1]
            self.lines.append(line)
        self.port = int(re.search(r"http://127\.0\.0\.1:(\d+)", self.lines[-1])[1])
        self.client = Client(self.port)

    def __enter__(self) -> "Server":
        return self

    def stop(self) -> None:
        """Tell it to end, once: a second signal may come after it has put the handlers back."""
        if not self.told:
            self.told = True
            self.process.terminate()

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.out, self.err = self.process.communicate(timeout=90)
        assert self.process.returncode == 0, self.err


@pytest.fixture(scope="module")
def served(digits_run: Path) -> Iterator[Client]:
    with Server(digits_run, "--max-body-mb", 1, "--max-megapixels", 20) as server:
        yield server.client


def fake(**changes: object) -> Served:
    """A model that says class 1 of everything, or what the test says."""
    always = Served(
        name="fake",
        task="image classification",
        classes=("a", "b"),
        accuracy=None,
        weights="model.pt",
        where="here",
        example=lambda data: np.frombuffer(data[:1], np.uint8),
        logits=lambda batch: np.tile(np.float32([0, 1]), (len(batch), 1)),
    )
    return replace(always, **changes)


def test_it_says_what_the_model_says(served: Client, digits_run: Path) -> None:
    images, _ = digits()
    expected = logits_of(digits_run, images[:30])
    for image, logits in zip(images, expected, strict=False):
        status, found = served.predict(png(image), "?top=10")
        assert status == 200 and found["class"] == str(logits.argmax())
        shares = {each["class"]: each["probability"] for each in found["probabilities"]}
        assert sum(shares.values()) == pytest.approx(1) and found["probability"] == max(shares.values())
        softmax = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        np.testing.assert_allclose([shares[str(each)] for each in range(10)], softmax, atol=1e-4)
    assert len(served.predict(png(images[0]))[1]["probabilities"]) == 5


def test_any_size_and_kind_of_picture_is_read_as_the_training_reads_it(served: Client) -> None:
    import io

    image = Image.fromarray(digits()[0][3]).resize((200, 120))
    answers = set()
    for kind, mode in (("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "L"), ("BMP", "RGB"), ("WEBP", "RGB"), ("GIF", "P")):
        file = io.BytesIO()
        image.convert(mode).save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
        status, found = served.predict(file.getvalue())
        assert status == 200, found
        answers.add(found["class"])
    assert len(answers) == 1


def bad_requests() -> dict[str, tuple[bytes, str, int, str]]:
    """Body, query, status, and a word of the error."""
    good, huge = png(digits()[0][0]), png(np.zeros((HUGE, HUGE, 3), np.uint8))
    return {
        "empty": (b"", "", 400, "empty"),
        "text": (b"hello", "", 400, "no picture"),
        "cut off": (good[: len(good) // 2], "", 400, "damaged"),
        "header alone": (good[:24], "", 400, "picture"),
        "a bomb": (huge, "", 413, "pixels"),
        "too large": (b"x" * 1_500_000, "", 413, "1,000,000 bytes"),
        "much too large": (b"x" * 9_000_000, "", 413, "1,000,000 bytes"),
        "top=no": (good, "?top=no", 400, "top=no"),
        "top=0": (good, "?top=0", 400, "top=0"),
    }


def test_a_bad_request_is_told_what_is_wrong(served: Client) -> None:
    for name, (body, query, status, word) in bad_requests().items():
        try:
            told, answer = served.predict(body, query)
        except (ConnectionResetError, BrokenPipeError):  # it hung up on 9 MB that it had said no to
            assert name == "much too large"
            continue
        assert told == status and word in answer["error"], (name, answer)
        assert set(answer) == {"error", "hint"} and answer["hint"], name


def test_a_wrong_page_or_method_is_told_what_there_is(served: Client) -> None:
    for method, path, status in (("GET", "/predict", 405), ("GET", "/nothing", 404), ("PUT", "/health", 405)):
        told, kind, content = served(method, path)
        assert told == status and kind == "application/json" and "POST /predict" in json.loads(content)["hint"]


def test_none_is_lost_under_a_load_of_good_and_bad_requests(served: Client, digits_run: Path) -> None:
    images, _ = digits()
    expected = [str(each) for each in logits_of(digits_run, images[:200]).argmax(1)]
    bad = [each for name, each in bad_requests().items() if name != "much too large"]
    before = {status: count_of(served, status) for status in (200, 400, 413)}
    batches, examples = served.metric("batches_total"), served.metric("predictions_total")
    asked: list[tuple[bytes, str, int, str | None]] = []
    for at in range(200):
        asked.append((png(images[at]), "", 200, expected[at]))
        if at % 2:
            body, query, status, _ = bad[at // 2 % len(bad)]
            asked.append((body, query, status, None))

    def ask(one: tuple[bytes, str, int, str | None]) -> None:
        body, query, status, name = one
        told, answer = served.predict(body, query)
        assert told == status and (name is None or answer["class"] == name), answer

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(ask, asked))
    for status, count in Counter(status for _, _, status, _ in asked).items():
        assert count_of(served, status) == before[status] + count
    assert served.metric("predictions_total") == examples + 200
    assert served.metric("batches_total") < batches + 200  # some shared a forward pass
    assert served.metric("largest_batch") > 1 and served.metric("in_hand") == 0


def count_of(client: Client, status: int) -> float:
    page = client("GET", "/metrics")[2].decode()
    return float((re.search(rf'^trainer_requests_total{{status="{status}"}} (\S+)$', page, re.M) or [0, 0])[1])


def test_the_metrics_are_in_prometheus_format(served: Client) -> None:
    served.predict(png(digits()[0][0]))
    status, kind, content = served("GET", "/metrics")
    assert status == 200 and kind == "text/plain"
    kinds, buckets = {}, []
    for line in content.decode().splitlines():
        if line.startswith("# TYPE "):
            kinds[line.split()[2]] = line.split()[3]
        elif not line.startswith("#"):
            name, _, value = re.fullmatch(r"(\w+)(\{.*\})? ([-+.\de]+)", line).groups()
            assert any(name.startswith(known) for known in kinds), line
            if name.endswith("_bucket"):
                buckets.append(float(value))
    assert kinds["trainer_request_seconds"] == "histogram" and buckets == sorted(buckets)
    assert buckets[-1] == served.metric("request_seconds_count") > 0


def test_health_names_the_model(served: Client) -> None:
    found = json.loads(served("GET", "/health")[2])
    assert found["status"] == "ok" and found["model"] == "lenet" and found["classes"] == list("0123456789")
    assert found["accuracy"] > 0.95 and found["runs_on"] == "PyTorch" and found["weights"].startswith("checkpoint.pt, ")


def test_the_page_loads_nothing_and_each_field_has_its_label(served: Client) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    connection.request("GET", "/")
    response = connection.getresponse()
    page, policy = response.read().decode(), response.headers["Content-Security-Policy"]
    connection.close()
    assert "default-src 'none'" in policy and not re.search(r"""(src|href)=["']?\w""", page) and "://" not in page
    for tag in ("script", "style"):
        inside = re.search(f"<{tag}>(.*?)</{tag}>", page, re.S)[1]
        assert f"'sha256-{b64encode(sha256(inside.encode()).digest()).decode()}'" in policy
    tags: list[tuple[str, dict]] = []
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))  # type: ignore[method-assign]
    parser.feed(page)
    labelled = {attributes["for"] for tag, attributes in tags if tag == "label"}
    fields = {attributes["id"] for tag, attributes in tags if tag in ("input", "textarea")}
    assert fields == labelled and ("html", {"lang": "en"}) in tags
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
    assert any(attributes.get("aria-live") == "polite" for _, attributes in tags)


def test_in_a_browser_a_picture_is_told_and_everyone_can_use_the_page(served: Client, tmp_path: Path, browser) -> None:
    """Chosen as a person does it; with nothing loaded from elsewhere, and no complaint of the page's own policy."""
    images, _ = digits()
    (tmp_path / "digit.png").write_bytes(png(images[7]))
    expected = served.predict(png(images[7]))[1]["class"]
    context = browser.new_context()
    page = context.new_page()
    fetched, said = [], []
    page.on("request", lambda request: fetched.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    address = f"http://127.0.0.1:{served.port}/"
    page.goto(address)
    page.get_by_text("lenet for image classification, 10 classes").wait_for()
    assert violations(page) == []
    page.get_by_role("button", name="What is it?").click()
    page.get_by_text("Choose a file first.").wait_for()
    page.get_by_label("A picture (choose, drop or paste it)").set_input_files(tmp_path / "digit.png")
    page.get_by_role("table").wait_for()
    assert page.get_by_role("status").inner_text().startswith(f"{expected} (")
    assert page.locator("tbody th").all_inner_texts()[0] == expected and page.locator("tbody tr").count() == 10
    assert page.locator("#shown").evaluate("each => each.decode().then(() => each.naturalWidth)") == 32
    assert violations(page) == []
    (tmp_path / "text.txt").write_text("hello")
    page.get_by_label("A picture (choose, drop or paste it)").set_input_files(tmp_path / "text.txt")
    page.get_by_text("this is no picture of a known format").wait_for()
    assert all(url.startswith((address, f"blob:{address}")) for url in fetched)
    assert [line for line in said if "400" not in line] == []  # the browser itself notes the one refusal
    context.close()


def test_a_stop_finishes_what_is_in_hand(digits_run: Path, eventually: Callable) -> None:
    images, _ = digits()
    expected = [str(each) for each in logits_of(digits_run, images[:10]).argmax(1)]
    with Server(digits_run, "--batch-ms", 2000) as server, ThreadPoolExecutor(10) as pool:
        answers = [pool.submit(server.client.predict, png(image)) for image in images[:10]]
        eventually(lambda: server.client.metric("in_hand") == 10)
        server.stop()
        assert [each.result()[0] for each in answers] == [200] * 10
        assert [each.result()[1]["class"] for each in answers] == expected
    assert "10 with a prediction" in server.out
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5).close()


def test_a_bundle_is_served_where_there_is_no_torch(digits_run: Path, exports: Path, tmp_path: Path) -> None:
    images, _ = digits()
    expected = [str(each) for each in logits_of(digits_run, images[:10]).argmax(1)]
    env = {"PYTHONPATH": f"{without(tmp_path / 'none', 'torch')['PYTHONPATH']}:{ROOT}"}
    for out in (exports / "edge", exports / "model.onnx"):
        with Server(out, env=env) as server:
            assert [server.client.predict(png(image))[1]["class"] for image in images[:10]] == expected
            assert json.loads(server.client("GET", "/health")[2])["runs_on"] == "ONNX Runtime"


def test_what_cannot_be_served_is_said_in_a_line(exports: Path, tmp_path: Path, run: Run) -> None:
    shutil.copy(exports / "model.onnx.json", tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"another")
    done = run("serve", "--out", tmp_path / "model.onnx", "--port", 0)
    assert done.code == 2 and "not the file that model.onnx.json describes" in done.err
    assert "holds no run" in run("serve", "--out", tmp_path, "--port", 0).err
    with listen("127.0.0.1", 0) as taken:
        done = run("serve", "--out", tmp_path, "--port", taken.getsockname()[1])
    assert done.code == 2 and "cannot listen" in done.err
    with pytest.raises(BadExport, match="cannot listen"):
        listen("203.0.113.1", 80)


# ---- a server in this process, with a model that the test makes


def test_a_model_that_fails_fails_that_request_alone() -> None:
    def logits(batch: np.ndarray) -> np.ndarray:
        if (batch == ord("!")).any():
            raise RuntimeError("no such number")
        return np.tile(np.float32([0, 1]), (len(batch), 1))

    with serving(fake(logits=logits), app.Limits()) as client:
        assert client.predict(b"a")[0] == 200
        status, answer = client.predict(b"!")
        assert status == 500 and "failed on this input" in answer["error"] and "number" not in str(answer)
        assert client.predict(b"a")[1]["class"] == "b" and count_of(client, 500) == 1


def test_a_sender_that_dawdles_is_told_and_left() -> None:
    with serving(fake(), app.Limits(body_s=0.3)) as client:
        with socket.create_connection(("127.0.0.1", client.port), timeout=30) as slow:
            slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
            said = b""
            while piece := slow.recv(1 << 16):
                said += piece
        assert said.startswith(b"HTTP/1.1 408") and b"has not arrived within 0.3 s" in said
        assert client.predict(b"a")[0] == 200


def test_a_sender_that_goes_away_hurts_nobody(eventually: Callable) -> None:
    with serving(fake(), app.Limits()) as client:
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", client.port), timeout=30) as gone:
                gone.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        eventually(lambda: count_of(client, app.CLOSED_REQUEST) == 5)
        assert client.predict(b"a")[0] == 200 and client.metric("in_hand") == 0


def test_more_than_it_can_hold_are_told_to_come_again() -> None:
    release = threading.Event()

    def example(data: bytes) -> np.ndarray:
        release.wait(30)
        return np.frombuffer(data[:1], np.uint8)

    with serving(fake(example=example), app.Limits(at_once=3)) as client, ThreadPoolExecutor(3) as pool:
        held = [pool.submit(client.predict, b"a") for _ in range(3)]
        try:
            deadline = time.monotonic() + 30
            while client.metric("in_hand") < 3 and time.monotonic() < deadline:
                time.sleep(0.02)
            status, answer = client.predict(b"a")
            assert status == 503 and "3 requests are in hand" in answer["error"]
        finally:
            release.set()
        assert [each.result()[0] for each in held] == [200] * 3
        assert client.predict(b"a")[0] == 200


def test_a_batch_is_no_larger_than_allowed_and_each_gets_its_own_answer() -> None:
    sizes = []

    def double(batch: np.ndarray) -> np.ndarray:
        sizes.append(len(batch))
        return 2 * batch

    async def ask() -> list[np.ndarray]:
        batcher = Batcher(double, 8, 0.01)
        batcher.start()
        answers = await asyncio.gather(*(batcher.answer(np.float32([at])) for at in range(30)))
        await batcher.stop()
        return answers

    with ThreadPoolExecutor(1) as elsewhere:  # the browser has a loop in this thread
        answers = elsewhere.submit(lambda: asyncio.run(ask())).result()
    assert [float(each[0]) for each in answers] == [2.0 * at for at in range(30)]
    assert sum(sizes) == 30 and max(sizes) == 8 and len(sizes) == 4
