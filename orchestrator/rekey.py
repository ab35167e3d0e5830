"""A rented machine's host key, replaced at the first connection by one that is made on the machine.

The first one comes with the user-data, so that the machine is known before it is met; whoever may read the user-data
may read that key. From here on it is worth nothing. Record, act, record: both keys are pinned before the machine shows
the new one, and the new one alone once it has shown it, so that a rotation that is cut short can be run again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from infra.cloudinit import REKEY_PATH
from infra.provider import Say, unheard
from orchestrator.errors import OrchestrateError, Refused
from orchestrator.ssh import Host, bare

REKEY_TIMEOUT_S = 60.0  # without a word; it takes 20 ms
SHOWN_WITHIN_S = 30.0  # after sshd was told to read its key again
LOOKS_S = (0.1, 5.0)  # the pause after the first look, and the longest: newer sshds shut out who looks too often
PUBLIC_KEY = re.compile(r"ssh-ed25519 [A-Za-z0-9+/]{68}(?= |$)")


def is_due(host: Host, seeded: str) -> bool:
    """Whether the host may still show the key that came with its user-data, whose public line that is."""
    return bare(seeded) in host.pins


def rotate(host: Host, save: Callable[[str], None], say: Say) -> str:
    """Gives the machine a host key of its own; returns its public line, which `host` alone accepts from then on.

    `save` records what the machine may show from now on: a line for each key. Run again after any failure it goes on
    from what was saved last. Raises Refused where the machine goes on to show the old key, Unreachable, CommandFailed.
    """
    say("giving the machine a host key of its own")
    host.wait(0, say)
    before, new = host.pins, host.shown
    if len(before) == 1 or new != before[0]:  # else it shows the new one already: only the end is missing
        new = _make(host)
        host.pins = (new, *(pin for pin in before if pin != new))
        save("\n".join(host.pins))
        host.run(["sudo", "-n", REKEY_PATH, "apply"], timeout_s=REKEY_TIMEOUT_S)
        _meet_again(host, new)
    save(new)
    host.pins = (new,)
    return new


def _make(host: Host) -> str:
    """The public line of a new key that lies on the machine, not yet shown by it."""
    said = host.run(["sudo", "-n", REKEY_PATH, "new"], timeout_s=REKEY_TIMEOUT_S)
    made = {match.group() for match in map(PUBLIC_KEY.match, said.splitlines()) if match}
    if len(made) != 1:
        raise OrchestrateError(
            f"{host} was asked for a new host key and answers with {len(made)}: {said[-500:]!r}",
            f"is {REKEY_PATH} there as it was written at the first boot?",
        )
    (new,) = made
    if new == host.shown:
        raise Refused(
            f"{host} was asked for a new host key and answers with the one that it shows", "take the machine down"
        )
    return new


def _meet_again(host: Host, new: str) -> None:
    """Connects anew, accepting only the new key. sshd takes a moment to be ready with it."""
    either, end, pause = host.pins, time.monotonic() + SHOWN_WITHIN_S, LOOKS_S[0]
    host.close()
    host.pins = (new,)
    try:
        while True:
            try:
                return host.wait(max(0, end - time.monotonic()), unheard)
            except Refused as error:
                if host.shown not in either or host.shown == new:
                    raise
                if time.monotonic() > end:
                    raise Refused(
                        f"{host} goes on to show the host key that it was to replace",
                        "somebody may be in between, with the key of the user-data; nothing was sent. "
                        "Where you trust the network, run it again",
                    ) from error
            time.sleep(pause)
            pause = min(pause * 2, LOOKS_S[1])
    finally:
        host.pins = either
