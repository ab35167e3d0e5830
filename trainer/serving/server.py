"""`python -m trainer serve`: from the first line to a stop that loses nobody's answer."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from trainer.errors import BadExport
from trainer.extras import need

if TYPE_CHECKING:
    import uvicorn

GRACE_S = 30  # for what is in hand when a stop is asked for


def serve(
    out: Path,
    host: str,
    port: int,
    *,
    device: str = "auto",
    threads: int = 1,
    most_in_batch: int = 64,
    wait_s: float = 0.003,
    body_bytes: int = 10 << 20,
    most_pixels: int = 40_000_000,
    length: int = 2000,
    say: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT; what is in hand then is answered. Raises BadExport, BadRun, MissingPackage."""
    need("serving", "deploy", "starlette", "uvicorn")
    listener = listen(host, port)
    import uvicorn

    from trainer.serving.app import Limits, Service
    from trainer.serving.batching import Batcher
    from trainer.serving.model import load

    class Server(uvicorn.Server):
        """uvicorn, which leaves the signals to us: its own way ends the process by the signal, not well."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            shown = f"[{host}]" if ":" in host else host
            say(f"serving on http://{shown}:{listener.getsockname()[1]}  (Ctrl-C ends it)")

    with listener, stopping() as asked:
        served = load(out, device, threads, most_pixels)
        classes = f", {len(served.classes)} classes" if served.classes else ""
        say(f"model   {served.name} for {served.task}{classes}, on {served.where}")
        say(f"weights {served.weights}")
        limits = Limits(body_bytes=body_bytes, length=length)
        service = Service(served, Batcher(served.logits, most_in_batch, wait_s), limits)
        config = uvicorn.Config(
            service.app(),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )
        server = Server(config)
        asked(server)
        server.run(sockets=[listener])
    answered = sum(service.statuses.values())
    told = f"{service.statuses[200]:,} with {'a text' if served.context else 'a prediction'}"
    say(f"stopped; {answered:,} requests were answered, {told}")


def listen(host: str, port: int) -> socket.socket:
    """A listener, before anything slow is done. Raises BadExport."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise BadExport(
            f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}",
            "Give another --port, of which 0 takes any that is free, or an address of this computer as --host.",
        ) from None


@contextlib.contextmanager
def stopping() -> "Iterator[Callable[[uvicorn.Server], None]]":
    """The first signal ends the server well, or what comes before it at once; a second Ctrl-C doesn't wait."""
    server: list[uvicorn.Server] = []

    def asked(number: int, frame: FrameType | None) -> None:
        if not server:
            raise SystemExit(128 + number)
        if server[0].should_exit and number == signal.SIGINT:
            os._exit(128 + number)
        server[0].should_exit = True

    before = {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield server.append
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
