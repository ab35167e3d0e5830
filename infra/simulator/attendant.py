"""Beside each simulated machine: `python -m infra.simulator.attendant HOME ID DESCRIPTOR`.

It is the machine's metadata address (the descriptor is a socket that listens), and it ends the machine when the cloud
does: at its expiry, when a spot notice has run out, when the cloud is gone. It ends with the machine.
"""

from __future__ import annotations

import json
import secrets
import socket
import sqlite3
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from infra.simulator import machines
from infra.simulator.cloud import Simulator
from infra.simulator.store import Resource

LOOK_EVERY_S = 1.0
ALIBABA, TENCENT, HUAWEI = "alicloud", "tencentcloud", "huaweicloud"
TOKEN_PATH, TOKEN_HEADER = "/latest/api/token", "X-aliyun-ecs-metadata-token"


def main(arguments: list[str]) -> None:
    """Serve until the machine has ended."""
    simulator, id = Simulator(Path(arguments[0])), arguments[1]
    server = serve(socket.socket(fileno=int(arguments[2])), simulator, id)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while simulator.home.exists():
        try:
            simulator.settle(only=id)
            if find(simulator, id) is None:
                break
        except sqlite3.OperationalError:  # busy, or its folder is being removed
            pass
        time.sleep(LOOK_EVERY_S)
    machines.end(simulator.home, id)


def find(simulator: Simulator, id: str) -> Resource | None:
    """The machine, if it lives."""
    return next((one for one in simulator.store.resources() if one.id == id and one.deleted_at is None), None)


def serve(listener: socket.socket, simulator: Simulator, id: str) -> ThreadingHTTPServer:
    """The metadata address, not yet answering."""
    tokens: set[str] = set()

    class Answer(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            if self.path != TOKEN_PATH or "X-aliyun-ecs-metadata-token-ttl-seconds" not in self.headers:
                return self.say(400, "")
            token = secrets.token_hex(16)
            tokens.add(token)
            return self.say(200, token)

        def do_GET(self) -> None:
            one = find(simulator, id)
            if one is None:
                return self.say(404, "")
            if one.inputs.get("httpTokens") == "required" and self.headers.get(TOKEN_HEADER) not in tokens:
                return self.say(403, "")
            said = told(one, self.path)
            return self.say(404, "") if said is None else self.say(200, said)

        def say(self, status: int, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(listener.getsockname(), Answer, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.daemon_threads = True
    return server


def told(one: Resource, path: str) -> str | None:
    """What a path says; None: 404."""
    if path == "/latest/meta-data/instance-id":
        return one.id
    if one.notice_at is None:
        return None
    moment = time.gmtime(one.notice_at)
    plain = time.strftime("%Y-%m-%d %H:%M:%S", moment)  # unconfirmed for both: that it is UTC
    return {
        (ALIBABA, "/latest/meta-data/instance/spot/termination-time"): time.strftime("%Y-%m-%dT%H:%M:%SZ", moment),
        (TENCENT, "/latest/meta-data/spot/termination-time"): plain,
        (HUAWEI, "/openstack/latest/spot/instance-action"): json.dumps({"action": "terminate", "timestamp": plain}),
    }.get((one.cloud, path))


if __name__ == "__main__":
    main(sys.argv[1:])
