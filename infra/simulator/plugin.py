"""The engine's conversation with a provider: `pulumi-resource-NAME` serves it for one cloud, and prints its port.

Inputs and outputs pass as they are: what a cloud adds is in `kinds`, what it refuses in `rules`. Secrets are taken in
clear, and the engine marks them again in what comes back.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any, NoReturn

import grpc  # type: ignore[import-untyped]  # no stubs among our tools
from google.protobuf import empty_pb2, json_format, struct_pb2  # type: ignore[import-untyped]
from pulumi.runtime.proto import plugin_pb2, provider_pb2, provider_pb2_grpc, status_pb2

from infra.simulator import answers, faults, kinds, rules
from infra.simulator.cloud import Simulator
from infra.simulator.faults import Fault
from infra.simulator.rules import Refusal
from infra.simulator.store import Resource

VERSIONS = {"alicloud": "4.0.0", "tencentcloud": "0.2.3", "huaweicloud": "0.0.12"}
AFTER_ENGINE_S = 5.0  # a plugin whose engine was killed goes on with what it was told to create, as real ones may
DROPPED = 3  # the exit status of a plugin that dies without a word
BIGGEST = 400 * 2**20  # bytes of a message, as Pulumi's own


class Provider(provider_pb2_grpc.ResourceProviderServicer):
    """One cloud, as the engine sees it."""

    def __init__(self, cloud: str, simulator: Simulator) -> None:
        self.cloud, self.simulator = cloud, simulator
        self.region = ""
        self.cancelled = threading.Event()

    # --- getting to know each other

    def Handshake(self, request: Any, context: Any) -> Any:
        """What we understand."""
        return provider_pb2.ProviderHandshakeResponse(accept_secrets=False, accept_outputs=False)

    def GetPluginInfo(self, request: Any, context: Any) -> Any:
        """Our version: the one that the SDK wants."""
        return plugin_pb2.PluginInfo(version=VERSIONS[self.cloud])

    def CheckConfig(self, request: Any, context: Any) -> Any:
        """Any setting is right."""
        return provider_pb2.CheckResponse(inputs=request.news)

    def DiffConfig(self, request: Any, context: Any) -> Any:
        """No setting matters to what exists."""
        return provider_pb2.DiffResponse(changes=provider_pb2.DiffResponse.DIFF_NONE)

    def Configure(self, request: Any, context: Any) -> Any:
        """Take the region."""
        variables = dict(request.variables)
        self.region = variables.get(f"{self.cloud}:config:region") or str(plain(request.args).get("region") or "")
        return provider_pb2.ConfigureResponse(acceptSecrets=False, supportsPreview=True)

    def Cancel(self, request: Any, context: Any) -> Any:
        """The engine gives up: what hangs is let go."""
        self.cancelled.set()
        return empty_pb2.Empty()

    # --- resources

    def Check(self, request: Any, context: Any) -> Any:
        """Any inputs are right until they are used."""
        return provider_pb2.CheckResponse(inputs=request.news)

    def Diff(self, request: Any, context: Any) -> Any:
        """What changed, and whether that makes it anew: what has a name after the old one has left it free."""
        old, new = plain(request.old_inputs), plain(request.news)
        changed = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
        kind = kinds.kind_of(type_of(request.urn))
        anew = [name for name in changed if name in kind.new]
        first = bool(anew and kind.name)
        some = provider_pb2.DiffResponse.DIFF_SOME if changed else provider_pb2.DiffResponse.DIFF_NONE
        return provider_pb2.DiffResponse(changes=some, diffs=changed, replaces=anew, deleteBeforeReplace=first)

    def Create(self, request: Any, context: Any) -> Any:
        """Make it."""
        if request.preview:
            return provider_pb2.CreateResponse(properties=request.properties)
        token, inputs = type_of(request.urn), plain(request.properties)

        def make() -> Resource:
            return self.simulator.create(self.cloud, token, inputs, self.region, os.environ)

        made = self.act(context, "create", token, "", make, told)
        return provider_pb2.CreateResponse(id=made.id, properties=struct(told(made)))

    def Read(self, request: Any, context: Any) -> Any:
        """What it is now; nothing where it is gone."""
        found = self.act(
            context, "read", type_of(request.urn), request.id, lambda: self.simulator.read(self.cloud, request.id)
        )
        if found is None:
            return provider_pb2.ReadResponse()
        return provider_pb2.ReadResponse(id=found.id, properties=struct(told(found)), inputs=struct(found.inputs))

    def Update(self, request: Any, context: Any) -> Any:
        """Change it in place."""
        if request.preview:
            return provider_pb2.UpdateResponse(properties=request.news)
        inputs = plain(request.news)
        changed = self.act(
            context, "update", type_of(request.urn), request.id,
            lambda: self.simulator.update(self.cloud, request.id, inputs),
        )  # fmt: skip
        return provider_pb2.UpdateResponse(properties=struct(told(changed)))

    def Delete(self, request: Any, context: Any) -> Any:
        """End it. What is gone already is a success."""
        self.act(
            context, "delete", type_of(request.urn), request.id, lambda: self.simulator.delete(self.cloud, request.id)
        )
        return empty_pb2.Empty()

    def Invoke(self, request: Any, context: Any) -> Any:
        """A data source."""
        asked = plain(request.args)
        found = self.act(
            context, "invoke", request.tok, "",
            lambda: answers.answer(self.simulator, self.cloud, request.tok, asked, self.region),
        )  # fmt: skip
        return provider_pb2.InvokeResponse(**{"return": struct(found)})

    # --- how every call goes

    def act(
        self, context: Any, operation: str, token: str, id: str, work: Callable[[], Any],
        told: Callable[[Any], dict[str, Any]] | None = None,
    ) -> Any:  # fmt: skip
        """Log it, let go wrong what is to, do it, and say how it went. `told`: what a partial failure tells."""
        call = self.simulator.store.begin(self.cloud, operation, token, id)
        code = "failed"
        try:
            met = faults.take(self.simulator.store, self.cloud, operation, token)
            if faults.wait(met, self.cancelled):
                code = "cancelled"
                context.abort(grpc.StatusCode.CANCELLED, "context canceled")
            rules.check_credentials(self.cloud, os.environ)
            faults.refuse(self.cloud, met, "fail_before")
            done = work()
            id = done.id if isinstance(done, Resource) else id
            if any(fault.kind == "drop_reply" for fault in met):
                self.simulator.store.end(call, id, "dropped")
                os._exit(DROPPED)
            if told and any(fault.kind == "partial" for fault in met):
                code = "partial"
                _partial(context, self.cloud, met, done, told(done))
            faults.refuse(self.cloud, met, "fail_after")
            code = "ok"
            return done
        except Refusal as problem:
            code = problem.code
            context.abort(grpc.StatusCode.UNKNOWN, str(problem))
        except LookupError as problem:
            context.abort(grpc.StatusCode.UNKNOWN, str(problem))
        finally:
            self.simulator.store.end(call, id, code)


def _partial(context: Any, cloud: str, met: list[Fault], one: Resource, outputs: dict[str, Any]) -> NoReturn:
    """An error that carries the id: the engine keeps the resource, and fails."""
    code = next((fault.code for fault in met if fault.code), "") or rules.CODES["internal"][cloud]
    message = rules.text(cloud, code, "it was told to fail half-way.")
    status = status_pb2.Status(code=grpc.StatusCode.UNKNOWN.value[0], message=message)
    detail = provider_pb2.ErrorResourceInitFailed(
        id=one.id, properties=struct(outputs), inputs=struct(one.inputs), reasons=[message]
    )
    status.details.add().Pack(detail)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(grpc.StatusCode.UNKNOWN, message)
    raise AssertionError("abort raises")


def told(one: Resource) -> dict[str, Any]:
    """What the engine is told of a thing."""
    return {**one.outputs, "id": one.id}


def type_of(urn: str) -> str:
    """The type in a URN: urn:pulumi:stack::project::parents$type::name."""
    return urn.split("::")[2].rpartition("$")[2]


def plain(value: struct_pb2.Struct) -> dict[str, Any]:
    """The values of a Struct; whole numbers as such."""

    def opened(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: opened(one) for key, one in value.items()}
        if isinstance(value, list):
            return [opened(one) for one in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    found: dict[str, Any] = opened(json_format.MessageToDict(value))
    return found


def struct(values: dict[str, Any]) -> struct_pb2.Struct:
    """The other way round."""
    made = struct_pb2.Struct()
    made.update(values)
    return made


def main() -> None:
    """Serve one cloud until the engine is done."""
    cloud = sys.argv[1]
    provider = Provider(cloud, Simulator())
    options = [("grpc.max_receive_message_length", BIGGEST), ("grpc.max_send_message_length", BIGGEST)]
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=32), options=options)
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(provider, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    ended = threading.Event()
    signal.signal(signal.SIGINT, lambda number, frame: ended.set())  # the engine's word that it is done
    parent = os.getppid()
    print(port, flush=True)
    while os.getppid() == parent:
        if ended.wait(0.2):
            return
    ended.wait(AFTER_ENGINE_S)
    os._exit(0)


if __name__ == "__main__":
    main()
