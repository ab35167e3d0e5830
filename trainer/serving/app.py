"""The HTTP side: a prediction for each body that is sent, and what people and monitors look at.

    POST /predict    a picture, text or WAV file as the body -> {"class": ..., "probability": ..., ...}
    POST /generate   of a language model, in its place: {"prompt": ..., "length": ...} -> {"text": ..., ...}
    GET /            a page to try it with
    GET /health      what is served
    GET /metrics     counts, in Prometheus' text format

Whatever is wrong with a request is its sender's to know: {"error": what happened, "hint": what to do}.
"""

import asyncio
import base64
import contextlib
import hashlib
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from trainer.exports.predict import BadExample, TooLarge, next_byte, probabilities, window
from trainer.serving.batching import Batcher
from trainer.serving.model import Served

PAGE = Path(__file__).with_name("page.html")
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
PATIENCE = 4  # times the largest body: so much is read and dropped, so that its sender hears why it is refused
LOOK_BYTES = 16  # written between looks whether the sender is still there
CLOSED_REQUEST = 499  # nginx's number for a sender that has gone; it is only counted


@dataclass(frozen=True)
class Limits:
    """What one request may ask of the machine, and how many may ask at once."""

    body_bytes: int = 10 << 20
    body_s: float = 30.0  # for a body to arrive
    at_once: int = 128  # requests in hand; those beyond are told to come again
    decoders: int = 2  # pictures unpacked at once
    length: int = 2000  # bytes that one request may have written


class Refusal(Exception):
    """A request that isn't answered with a prediction, and why."""

    def __init__(self, status: int, error: str, hint: str = "") -> None:
        super().__init__(error)
        self.status, self.error, self.hint = status, error, hint


class Ask(BaseModel):
    """What is asked of a language model."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str = ""
    length: int = Field(default=300, ge=1)  # bytes to go on for
    temperature: float = Field(default=0.7, ge=0, le=100, allow_inf_nan=False)  # 0: the likeliest each time
    seed: int = Field(default_factory=lambda: secrets.randbits(32), ge=0, lt=2**32)


@dataclass
class Service:
    """A model being served."""

    served: Served
    batcher: Batcher
    limits: Limits
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: Counter[float] = field(default_factory=Counter)  # requests by the bucket of their time
    seconds_sum: float = 0.0
    in_hand: int = 0

    def __post_init__(self) -> None:
        self._decoding = ThreadPoolExecutor(self.limits.decoders, thread_name_prefix="decode")
        self._page = PAGE.read_text(encoding="utf-8")

    def app(self) -> Starlette:
        """The application, which computes from its start to its end."""
        asked = Route("/generate", self.generate, methods=["POST"])
        if not self.served.context:
            asked = Route("/predict", self.predict, methods=["POST"])
        return Starlette(
            routes=[Route("/", self.page), asked, Route("/health", self.health), Route("/metrics", self.metrics)],
            exception_handlers={HTTPException: self._told, Exception: _broken},
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.batcher.start()
        yield
        await self.batcher.stop()
        self._decoding.shutdown()

    # ---- the routes

    async def predict(self, request: Request) -> Response:
        """One prediction."""
        return await self._answer(request, self._predicted)

    async def generate(self, request: Request) -> Response:
        """A text that is gone on with."""
        return await self._answer(request, self._generated)

    async def _answer(self, request: Request, answer: Callable[[Request], Awaitable[dict[str, object]]]) -> Response:
        """Whatever happens, it is counted, and its sender is told."""
        started, status = time.perf_counter(), 500
        self.in_hand += 1
        try:
            if self.in_hand > self.limits.at_once:
                raise Refusal(503, f"{self.limits.at_once} requests are in hand already", "Try again in a second.")
            response = JSONResponse(await answer(request))
            status = response.status_code
            return response
        except Refusal as refusal:
            status = refusal.status
            headers = {"Retry-After": "1"} if status == 503 else {}
            if status in (408, 413):
                headers["Connection"] = "close"  # what is still on its way isn't wanted
            return JSONResponse({"error": refusal.error, "hint": refusal.hint}, status, headers)
        except (ClientDisconnect, asyncio.CancelledError):
            status = CLOSED_REQUEST
            raise
        finally:
            self.in_hand -= 1
            self._count(status, time.perf_counter() - started)

    async def _predicted(self, request: Request) -> dict[str, object]:
        assert self.served.example is not None
        top = _number(request.query_params.get("top", "5"))
        body = await self._body(request)
        if not body:
            raise Refusal(400, "the body is empty", "Send the file itself as the body: curl --data-binary @FILE.")
        loop = asyncio.get_running_loop()
        try:
            example = await loop.run_in_executor(self._decoding, self.served.example, body)
        except TooLarge as error:
            raise Refusal(413, str(error), "Send a smaller one.") from None
        except BadExample as error:
            raise Refusal(400, str(error), f"This model is for {self.served.task}.") from None
        found = probabilities(await self.batcher.answer(example))
        order = sorted(range(len(found)), key=lambda at: -found[at])
        answers = [{"class": self.served.classes[at], "probability": float(found[at])} for at in order]
        return {**answers[0], "probabilities": answers[:top]}

    async def _generated(self, request: Request) -> dict[str, object]:
        """Byte by byte, each in a batch with those of other requests."""
        ask = _ask(await self._body(request))
        if ask.length > self.limits.length:
            raise Refusal(
                400, f"length {ask.length} is more than {self.limits.length:,} bytes", "Ask for less at once."
            )
        text, draw = bytearray(ask.prompt.encode() or b"\n"), np.random.default_rng(ask.seed)
        for at in range(ask.length):
            if at % LOOK_BYTES == 0 and await request.is_disconnected():
                raise ClientDisconnect
            found = await self.batcher.answer(window(text, self.served.context))
            text += next_byte(found, text, ask.temperature, draw)
        return {"text": text.decode(errors="replace"), "length": ask.length, "seed": ask.seed}

    async def _body(self, request: Request) -> bytes:
        """The whole body, of which no more is held than is allowed. Raises Refusal."""
        most = self.limits.body_bytes
        pieces, size = [], _length(request)

        async def read() -> None:
            nonlocal size
            size = 0
            async for piece in request.stream():
                size += len(piece)
                if size <= most:
                    pieces.append(piece)
                elif size > PATIENCE * most:
                    return

        if size <= PATIENCE * most:
            try:
                await asyncio.wait_for(read(), self.limits.body_s)
            except asyncio.TimeoutError:
                raise Refusal(408, f"the body has not arrived within {self.limits.body_s:g} s") from None
        if size > most:
            raise Refusal(413, f"the body is larger than {most:,} bytes", "Send a smaller file.")
        return b"".join(pieces)

    async def page(self, request: Request) -> Response:
        """A page to try it with; it loads nothing from anywhere else, and may not."""
        policy = f"default-src 'none'; img-src blob:; connect-src 'self'; {_hashes(self._page)}; base-uri 'none'"
        return HTMLResponse(self._page, headers={"Content-Security-Policy": policy})

    async def health(self, request: Request) -> Response:
        """That it is up, and what it is."""
        served = self.served
        return JSONResponse(
            {
                "status": "ok",
                "model": served.name,
                "task": served.task,
                "classes": served.classes,
                "accuracy": served.accuracy,
                "weights": Path(served.weights).name,
                "runs_on": served.where,
            }
        )

    async def metrics(self, request: Request) -> Response:
        """Counts, in Prometheus' text format."""
        counts, lines = self.batcher.counts, []

        def add(name: str, kind: str, help_text: str, *samples: tuple[str, float]) -> None:
            lines.extend([f"# HELP trainer_{name} {help_text}", f"# TYPE trainer_{name} {kind}"])
            lines.extend(f"trainer_{name}{labels} {value:g}" for labels, value in samples)

        statuses = sorted(self.statuses.items())
        add("requests_total", "counter", "Requests for a prediction, by the status that they were answered with.",
            *((f'{{status="{status}"}}', count) for status, count in statuses))  # fmt: skip
        add("in_hand", "gauge", "Requests being answered.", ("", self.in_hand))
        add("predictions_total", "counter", "Examples that were computed.", ("", counts.examples))
        add("batches_total", "counter", "Forward passes.", ("", counts.batches))
        add("largest_batch", "gauge", "Examples in the largest forward pass.", ("", counts.largest))
        total = 0
        samples: list[tuple[str, float]] = []
        for bucket in BUCKETS_S:
            total += self.seconds[bucket]
            samples.append((f'_bucket{{le="{bucket:g}"}}', total))
        every = sum(self.statuses.values())
        samples += [('_bucket{le="+Inf"}', every), ("_sum", self.seconds_sum), ("_count", every)]
        add("request_seconds", "histogram", "Time from a request to its answer.", *samples)
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    async def _told(self, request: Request, error: Exception) -> Response:
        """Starlette's own refusals, as JSON like ours: no such page, no such method."""
        assert isinstance(error, HTTPException)
        asked = "/generate" if self.served.context else "/predict"
        hint = f"There are: POST {asked}, GET /, GET /health, GET /metrics."
        return JSONResponse({"error": error.detail, "hint": hint}, error.status_code, error.headers)

    def _count(self, status: int, seconds: float) -> None:
        self.statuses[status] += 1
        self.seconds_sum += seconds
        for bucket in BUCKETS_S:
            if seconds <= bucket:
                self.seconds[bucket] += 1
                break


def _length(request: Request) -> int:
    """What the sender says of the body's size; 0 where it doesn't."""
    told = request.headers.get("content-length", "0")
    return int(told) if told.isdecimal() else 0


def _number(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,4}", text):
        raise Refusal(400, f"top={text[:20]} is no number of classes", "Say how many: top=3.")
    return int(text)


def _ask(body: bytes) -> Ask:
    try:
        return Ask.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the body"
        raise Refusal(
            400, f"{field}: {first['msg']}", 'Send JSON such as {"prompt": "The ", "length": 300, "temperature": 0.7}.'
        ) from None


async def _broken(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the model failed on this input", "hint": "The server's log says why."}, 500)


def _hashes(page: str) -> str:
    """What lets the page's own script and style run, and no other."""
    rules = []
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        for text in re.findall(f"<{tag}>(.*?)</{tag}>", page, re.S):
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            rules.append(f"{rule} 'sha256-{digest}'")
    return "; ".join(rules)
