"""A machine of the local cloud, behind a real SSH server, without a record."""

from __future__ import annotations

import time
from pathlib import Path

from infra import processes
from infra.clouds import local
from infra.provider import MachineSpec, Offer
from orchestrator.ssh import Host, generate_key

OFFER = Offer("local", "local", "local", "this computer", 1, 1)


class Rig:
    """A machine of the local cloud, and how to reach it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client, self.server = generate_key(), generate_key()
        self.key = folder / "id"
        self.key.write_text(self.client.private)
        spec = MachineSpec(
            "ssh-test", OFFER, folder, time.time() + 600, self.client.public, self.server.public, self.server.private
        )
        (self.machine,) = local.create(spec, lambda line: None)

    def host(self, key: Path | None = None, host_key: str = "") -> Host:
        where = self.machine
        return Host(where.host, where.port, where.user, key or self.key, host_key or self.server.public + " comment")

    def processes(self, word: str) -> list[int]:
        found = processes.of_machine(local.machine_id("ssh-test", self.folder))
        return [process.pid for process in found if word in process.command]
