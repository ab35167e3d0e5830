"""What the clouds have: to be rented (offers, plan), and left over of what was (sweep)."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from orchestrator.commands.flags import Arg, Json, NewName, Opt, Simulate, Yes, providers, with_machine
from orchestrator.commands.reading import read, session_name, store
from orchestrator.commands.telling import done, say, told
from orchestrator.errors import UsageError

SweptClouds = Annotated[
    str | None, Opt("--provider", metavar="NAME", help="A cloud, or several; left out: all.", autocompletion=providers)
]
SweptRegions = Annotated[str | None, Opt("--region", metavar="NAME", help="A region, or several; left out: all.")]
SweptSessions = Annotated[
    list[str] | None,
    Arg(metavar="SESSION", help="As the table names it, open or not; left out: what is left over here."),
]
Everything = Annotated[bool, Opt("--all", "-a", help="What open sessions have, too, and what was made elsewhere.")]
DryRun = Annotated[bool, Opt("--dry-run", help="Show it, and change nothing.")]


@with_machine
def offers(
    simulate: Simulate = False,
    as_json: Json = False,
    **machine: Any,
) -> None:
    """What can be rented, cheapest first: of the named provider, or of all. Asks each cloud that there is a key for."""
    everywhere = machine["provider"] is None
    config = read(machine.pop("file"), as_json, machine)
    with told(False, as_json) as watcher:
        from orchestrator import market
        from orchestrator.report import offers_table

        found, problems = market.offers(config, everywhere, simulate)
        if as_json:
            for problem in problems:
                watcher.say(problem)
            done(True, [offer.__dict__ for offer in found])
        else:
            offers_table(found, problems)


@with_machine
def plan(
    name: NewName = None,
    simulate: Simulate = False,
    as_json: Json = False,
    **machine: Any,
) -> None:
    """What `up` would rent and create; nothing is."""
    config = read(machine.pop("file"), as_json, machine)
    with told(False, as_json) as watcher:
        from orchestrator import market
        from orchestrator.report import describe

        proposal, created = market.plan(session_name(name, config), config, simulate, watcher)
        if as_json:
            done(True, {**proposal.__dict__, "offers": [o.__dict__ for o in proposal.offers], "creates": created})
        else:
            print("\n".join([*describe(proposal), *(f"creates   {one}" for one in created)]))


def sweep(
    sessions: SweptSessions = None,
    provider: SweptClouds = None,
    region: SweptRegions = None,
    everything: Everything = False,
    dry_run: DryRun = False,
    simulate: Simulate = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Find what is still in the clouds with our tag, whatever the record says, and remove it."""
    with told(yes, as_json) as watcher:
        from orchestrator import leftovers
        from orchestrator.report import leftovers_table

        try:
            seen = leftovers.look(store(), leftovers.clouds(provider), leftovers.words(region), simulate, watcher.say)
            found = leftovers.chosen(seen, sessions or [], everything)
            if not as_json:
                leftovers_table(seen, found)
            asks = sys.stdin.isatty() and not yes
            wanted = f"remove {len(found)} of {len(seen.left)} things?"
            if found and not (dry_run or yes or (asks and watcher.confirms(wanted))):
                raise UsageError("nothing was removed", "say yes, or --yes; --dry-run only shows")
        except KeyboardInterrupt:  # of what is there the record knows nothing
            watcher.close()
            say("\ninterrupted; nothing was removed: `orchestrate sweep` begins anew")
            raise typer.Exit(130) from None
        if found and not dry_run:
            leftovers.remove(found, simulate, watcher.say)
        leftovers.check_heard(seen)
        done(as_json, leftovers.as_json(seen, found), leftovers.summary(seen, found, dry_run))
