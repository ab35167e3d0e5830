"""`python -m infra.simulator`: look at the simulated cloud, and have things happen to it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from infra import simulator as place
from infra.simulator import faults
from infra.simulator.cloud import Simulator


def main(arguments: list[str] | None = None) -> int:
    """One command. Returns the exit status: 1 where something is left or isn't there."""
    given = parser().parse_args(arguments)
    simulator = Simulator(given.home)
    if given.command in ("inventory", "meter", "log"):
        show(given.command, rows(simulator, given.command), given.json)
        return 0
    if given.command == "fault":
        simulator.fault(given.match, given.kind, given.times, given.code, given.seconds, given.cloud)
        return 0
    if given.command == "reset":
        return say_left(simulator.reset())
    if given.command == "leftovers":
        return say_left(simulator.leftovers())
    if given.command == "expire":
        simulator.advance(given.advance)
        print(*simulator.expire(), sep="\n")
        return 0
    try:
        if given.command == "preempt":
            simulator.preempt(given.id, given.notice)
        else:
            simulator.reboot(given.id)
    except LookupError as problem:
        print(problem.args[0], file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """What can be said."""
    made = argparse.ArgumentParser(prog="python -m infra.simulator", description=__doc__)
    made.add_argument("--home", type=Path, default=place.folder(), help=f"the cloud's folder (or ${place.HOME})")
    commands = made.add_subparsers(dest="command", metavar="COMMAND")
    made.set_defaults(command="inventory", json=False)
    for name, help in (
        ("inventory", "what lives"),
        ("meter", "what each thing has cost"),
        ("log", "every call"),
    ):
        commands.add_parser(name, help=help).add_argument("--json", action="store_true")
    commands.add_parser("leftovers", help="what lives or runs; status 1 if anything does")
    commands.add_parser("reset", help="end every machine and forget everything")
    commands.add_parser("expire", help="end what is due").add_argument(
        "--advance", type=float, default=0.0, metavar="SECONDS", help="move the cloud's clock first"
    )
    preempt = commands.add_parser("preempt", help="take a machine back")
    preempt.add_argument("id")
    preempt.add_argument("--notice", type=float, default=5.0, metavar="SECONDS")
    commands.add_parser("reboot", help="restart a machine").add_argument("id")
    fault = commands.add_parser(
        "fault", help="have a call go wrong", description=faults.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    fault.add_argument("match", help='words of the call: "create machine"')
    fault.add_argument("kind", choices=faults.KINDS)
    fault.add_argument("--times", type=int, default=1, help="0: always")
    fault.add_argument("--code", default="")
    fault.add_argument("--seconds", type=float, default=0.0)
    fault.add_argument("--cloud", default="", choices=("", *place.PLUGINS))
    return made


def rows(simulator: Simulator, what: str) -> list[dict[str, Any]]:
    """The rows of a table. No inputs: they hold secrets."""
    if what == "meter":
        return [asdict(one) for one in simulator.meter()]
    if what == "log":
        return [{**asdict(one), "at": moment(one.at)} for one in simulator.calls()]
    return [
        {
            "id": one.id, "type": one.type, "name": one.name, "region": one.region, "state": one.state,
            "created": moment(one.created_at), "expires": moment(one.expires_at), "port": one.port or "",
        }
        for one in simulator.inventory()
    ]  # fmt: skip


def moment(seconds: float | None) -> str:
    """A time in words."""
    return "" if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def show(what: str, table: list[dict[str, Any]], as_json: bool) -> None:
    """Print a table, its total under a meter's."""
    if as_json:
        print(json.dumps(table, indent=1))
        return
    if not table:
        print("nothing")
        return
    shown = [list(table[0]), *([_word(value) for value in row.values()] for row in table)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(shown[0]))]
    for row in shown:
        print("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())
    if what == "meter":
        print(f"total {sum(row['cost'] for row in table):.4f} CNY, {sum(row['running'] for row in table)} running")


def _word(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def say_left(left: Iterable[str]) -> int:
    """Print what is left; the exit status."""
    found = list(left)
    print(*(found or ["nothing is left"]), sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
