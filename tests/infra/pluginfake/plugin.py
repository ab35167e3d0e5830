"""The smallest provider that the real engine takes for a cloud's: `pulumi-resource-alicloud` of the engine's tests.

Its cloud is the folder $FAKE_CLOUD: a file ID.json for each thing that exists, `calls` with a line for each call, and
`rules.json`, read anew at each call, which says how calls go:

    [{"call": "Create", "type": "alicloud:vpc/switch:Switch", "delay_s": 3, "fail": "before" or "after", "says": "..."}]

Run as a program it serves one provider, prints its port and ends with the engine.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import uuid
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import empty_pb2, json_format, struct_pb2
from pulumi.runtime.proto import plugin_pb2, provider_pb2, provider_pb2_grpc

SIGNATURE = "4dabf18193072939515e22adb298388d"  # marks a value that is more than its JSON
SECRET = "1b47061264138c4ac30d75fd1eb44270"


class Fake(provider_pb2_grpc.ResourceProviderServicer):
    """A cloud of files."""

    def __init__(self, cloud: Path) -> None:
        self.cloud = cloud
        self.lock = threading.Lock()

    # The engine's conversation with any provider.

    def Handshake(self, request: Any, context: Any) -> Any:
        return provider_pb2.ProviderHandshakeResponse(accept_secrets=True, accept_outputs=False)

    def GetPluginInfo(self, request: Any, context: Any) -> Any:
        return plugin_pb2.PluginInfo(version="4.0.0")

    def CheckConfig(self, request: Any, context: Any) -> Any:
        self.log("CheckConfig", "")
        return provider_pb2.CheckResponse(inputs=request.news)

    def DiffConfig(self, request: Any, context: Any) -> Any:
        return provider_pb2.DiffResponse(changes=provider_pb2.DiffResponse.DIFF_NONE)

    def Configure(self, request: Any, context: Any) -> Any:
        self.log("Configure", "")
        return provider_pb2.ConfigureResponse(acceptSecrets=True, supportsPreview=True)

    def Cancel(self, request: Any, context: Any) -> Any:
        self.log("Cancel", "")
        return empty_pb2.Empty()

    # Resources.

    def Check(self, request: Any, context: Any) -> Any:
        self.log("Check", type_of(request.urn))
        return provider_pb2.CheckResponse(inputs=request.news)

    def Diff(self, request: Any, context: Any) -> Any:
        changed = plain(request.old_inputs) != plain(request.news)
        kind = provider_pb2.DiffResponse.DIFF_SOME if changed else provider_pb2.DiffResponse.DIFF_NONE
        return provider_pb2.DiffResponse(changes=kind)

    def Create(self, request: Any, context: Any) -> Any:
        kind, inputs = type_of(request.urn), plain(request.properties)
        if request.preview:
            return provider_pb2.CreateResponse(properties=request.properties)
        rule = self.begin("Create", kind, context)
        new = f"{kind.rpartition(':')[2].lower()}-{uuid.uuid4().hex[:8]}"
        outputs = {**inputs, "publicIp": "203.0.113.7"} if kind.endswith(":Instance") else inputs
        (self.cloud / f"{new}.json").write_text(json.dumps({"id": new, "type": kind, "outputs": outputs}))
        self.log("Created", kind, new)
        self.finish(rule, context)
        return provider_pb2.CreateResponse(id=new, properties=struct(outputs))

    def Read(self, request: Any, context: Any) -> Any:
        try:
            found = json.loads((self.cloud / f"{request.id}.json").read_text())
        except FileNotFoundError:
            return provider_pb2.ReadResponse()
        return provider_pb2.ReadResponse(id=request.id, properties=struct(found["outputs"]), inputs=request.inputs)

    def Update(self, request: Any, context: Any) -> Any:
        return provider_pb2.UpdateResponse(properties=request.news)

    def Delete(self, request: Any, context: Any) -> Any:
        kind = type_of(request.urn)
        rule = self.begin("Delete", kind, context)
        (self.cloud / f"{request.id}.json").unlink(missing_ok=True)
        self.log("Deleted", kind, request.id)
        self.finish(rule, context)
        return empty_pb2.Empty()

    def Invoke(self, request: Any, context: Any) -> Any:
        return provider_pb2.InvokeResponse()

    # What the rules say.

    def begin(self, call: str, kind: str, context: Any) -> dict[str, Any]:
        self.log(call, kind)
        rules = self.cloud / "rules.json"
        for rule in json.loads(rules.read_text()) if rules.exists() else []:
            if rule["call"] == call and rule["type"] == kind:
                time.sleep(rule.get("delay_s", 0))
                if rule.get("fail") == "before":
                    context.abort(grpc.StatusCode.UNKNOWN, rule["says"])
                return dict(rule)
        return {}

    def finish(self, rule: dict[str, Any], context: Any) -> None:
        if rule.get("fail") == "after":
            context.abort(grpc.StatusCode.UNKNOWN, rule["says"])

    def log(self, *words: str) -> None:
        with self.lock, open(self.cloud / "calls", "a") as calls:
            calls.write(" ".join(words) + "\n")


def type_of(urn: str) -> str:
    return urn.split("::")[2].rpartition("$")[2]


def plain(value: struct_pb2.Struct) -> Any:
    """The values of a Struct, secrets in clear."""

    def opened(value: Any) -> Any:
        if isinstance(value, dict):
            return (
                opened(value["value"]) if value.get(SIGNATURE) == SECRET else {k: opened(v) for k, v in value.items()}
            )
        return [opened(one) for one in value] if isinstance(value, list) else value

    return opened(json_format.MessageToDict(value))


def struct(values: dict[str, Any]) -> struct_pb2.Struct:
    made = struct_pb2.Struct()
    made.update(values)
    return made


def main() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(Fake(Path(os.environ["FAKE_CLOUD"])), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    # The engine's SIGINT means that it is done. Where it was killed, this ends a while after it has lost its parent:
    # long enough to finish what it was told to create, as real plugins may.
    ended = threading.Event()
    signal.signal(signal.SIGINT, lambda number, frame: ended.set())
    parent = os.getppid()
    while os.getppid() == parent:
        if ended.wait(0.2):
            return
    ended.wait(5)


if __name__ == "__main__":
    main()
