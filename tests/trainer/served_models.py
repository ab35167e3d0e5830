"""A server in the tests' own process, and requests to a server on this computer."""

import contextlib
import http.client
import json
import re
import threading
from collections.abc import Iterator

import uvicorn

from trainer.serving import app
from trainer.serving.batching import Batcher
from trainer.serving.model import Served
from trainer.serving.server import listen


class Client:
    """Requests to a server on this computer."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __call__(self, method: str, path: str, body: bytes | None = None) -> tuple[int, str, bytes]:
        """Status, kind and content of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.headers.get_content_type(), response.read()
        finally:
            connection.close()

    def predict(self, body: bytes, query: str = "") -> tuple[int, dict]:
        status, kind, content = self("POST", f"/predict{query}", body)
        assert kind == "application/json"
        return status, json.loads(content)

    def metric(self, name: str) -> float:
        page = self("GET", "/metrics")[2].decode()
        return float(re.search(rf"^trainer_{re.escape(name)} (\S+)$", page, re.M)[1])

    def post(self, path: str, told: object) -> tuple[int, dict]:
        """Something as JSON; or words that are none."""
        status, kind, content = self(
            "POST", path, told.encode() if isinstance(told, str) else json.dumps(told).encode()
        )
        assert kind == "application/json"
        return status, json.loads(content)


@contextlib.contextmanager
def serving(served: Served, limits: app.Limits | None = None) -> Iterator[Client]:
    """A server in this process."""
    service = app.Service(served, Batcher(served.logits, 8, 0.001), limits or app.Limits())
    server = uvicorn.Server(uvicorn.Config(service.app(), log_level="critical"))
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Client(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(timeout=60)
            assert not thread.is_alive()
