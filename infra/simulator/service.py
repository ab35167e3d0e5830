"""The clouds' APIs over HTTP on 127.0.0.1, so that the real SDKs' clients are what every simulated run calls.

It runs in the process that asks, and ends with it: the truth is the cloud's file. It takes the simulator's key alone:
a real one that comes here is refused as one that isn't known.
"""

from __future__ import annotations

import json
import re
import socketserver
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler
from typing import Any

from infra.simulator import alibaba, faults, huawei, rules, tencent
from infra.simulator.calls import ALIBABA, HUAWEI, TENCENT, Act, Asked, answered, refused
from infra.simulator.cloud import Simulator
from infra.simulator.rules import Refusal

KEY_ID = SECRET = "simulated"  # noqa: S105 - it opens nothing
LOOK_EVERY_S = 0.5  # whether it is to end
CALLS = {ALIBABA: alibaba.call, TENCENT: tencent.call, HUAWEI: huawei.call}


class Server(socketserver.ThreadingTCPServer):
    """A thread for each connection."""

    daemon_threads = True
    request_queue_size = 128
    timeout = LOOK_EVERY_S

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who asked may have given up, which is no error here."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Service:
    """The APIs of one simulated cloud, until `stop`."""

    def __init__(self, simulator: Simulator) -> None:
        server = Server(("127.0.0.1", 0), handler(simulator))
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        self.stopped = threading.Event()
        threading.Thread(target=serve, args=(server, self.stopped), daemon=True, name="simulated API").start()

    def stop(self) -> None:
        """No more answers, soon."""
        self.stopped.set()


def serve(server: Server, stopped: threading.Event) -> None:
    """Answer until told to stop."""
    with server:
        while not stopped.is_set():
            server.handle_request()


def handler(simulator: Simulator) -> type[BaseHTTPRequestHandler]:
    """What answers one request."""

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "orchestrate-simulator", ""

        def do_GET(self) -> None:
            """A call of an API; to ask what time it is takes no key."""
            if self.path != "/":
                self.do_POST()
            elif perform(simulator, "", Act("clock", "api", dict), knows_key=True) is not None:
                self.send_response(404)
                self.end_headers()

        def do_POST(self) -> None:
            """A call of an API."""
            size = int(self.headers.get("Content-Length") or 0)
            asked = understood(self.command, self.path, dict(self.headers), self.rfile.read(size))
            key = key_of(self.headers.get("Authorization", ""))
            try:
                said = perform(simulator, asked.cloud, CALLS[asked.cloud](simulator, asked), key == KEY_ID)
            except Refusal as problem:  # there is no such call
                said = refused(problem)
            if said is None:
                return  # and no answer
            status, content = said
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_DELETE = do_POST

        def date_time_string(self, timestamp: float | None = None) -> str:
            """The Date of an answer: by the cloud's clock."""
            return super().date_time_string(simulator.store.now() if timestamp is None else timestamp)

        def log_message(self, *_: Any) -> None:
            """The log is the cloud's file."""

    return Handler


def key_of(authorization: str) -> str:
    """The id of the key that a request is signed with, in each of the three clouds' forms."""
    found = re.search(r"(?:Credential|Access)=([^/,\s]+)", authorization)
    return found[1] if found else ""


def understood(method: str, target: str, headers: dict[str, str], body: bytes) -> Asked:
    """A request, by its own cloud's way to say what is asked for."""
    parts = urllib.parse.urlsplit(target)
    parameters = dict(urllib.parse.parse_qsl(parts.query))
    parameters.update(json.loads(body) if body else {})
    names = {name.lower(): value for name, value in headers.items()}
    if action := names.get("x-acs-action"):
        return Asked(ALIBABA, action, parameters.get("RegionId", ""), parameters)
    if action := names.get("x-tc-action"):
        return Asked(TENCENT, action, names.get("x-tc-region", ""), parameters)
    path = "/".join(urllib.parse.unquote(step) for step in parts.path.rstrip("/").split("/"))
    return Asked(HUAWEI, f"{method} {path}", "", parameters)


def perform(simulator: Simulator, cloud: str, wanted: Act, knows_key: bool) -> tuple[int, dict[str, Any]] | None:
    """One call, logged, and met by faults, as the plugin's are: its status and body; None: no answer comes."""
    store = simulator.store
    call = store.begin(cloud, wanted.operation, wanted.type, wanted.id)
    outcome = "failed"
    try:
        met = faults.take(store, cloud, wanted.operation, wanted.type)
        if any(fault.kind == "hang" and not fault.seconds for fault in met):
            outcome = "dropped"  # for ever: it is given up at once, which is what any deadline comes to
            return None
        faults.wait(met, threading.Event())
        if not knows_key:
            raise rules.refusal(cloud, "key", "the specified access key is not found.")
        faults.refuse(cloud, met, "fail_before")
        body = wanted.work()
        if any(fault.kind == "drop_reply" for fault in met):
            outcome = "dropped"
            return None
        faults.refuse(cloud, met, "fail_after")
        outcome = "ok"
        return 200, answered(cloud, body)
    except Refusal as problem:
        outcome = problem.code
        return refused(problem)
    finally:
        store.end(call, wanted.id, outcome)
