"""What a person sees: steps, plans, tables, the live bar. Steps go to stderr, the job's own output to stdout."""

from __future__ import annotations

import codecs
import contextlib
import math
import re
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.errors import UsageError
from orchestrator.watch import Proposal

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from infra.provider import Offer
    from orchestrator.leftovers import Leftover, Survey
    from orchestrator.store import Session
    from orchestrator.visit import Seen

# Escape sequences, and the control characters (C0 and C1) but for tab, newline and carriage return.
CONTROL = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])?|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
)
LONGEST_LINE = 1 << 16
SHOWN_OFFERS = 15


def clean(text: str) -> str:
    """The text without what could steer a terminal."""
    return CONTROL.sub("", text)


class Lines:
    """Bytes as they arrive, as lines of clean text; of a line that was overwritten by \\r only the last state."""

    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.rest = ""

    def feed(self, data: bytes) -> list[str]:
        """The lines that are complete now; `rest` is the one that isn't."""
        *whole, self.rest = (self.rest + self.decoder.decode(data)).replace("\r\n", "\n").split("\n")
        if len(self.rest) > LONGEST_LINE:
            whole.append(self.rest)
            self.rest = ""
        if "\r" in self.rest[:-1]:
            self.rest = (
                self.rest.rpartition("\r")[2]
                if not self.rest.endswith("\r")
                else self.rest[:-1].rpartition("\r")[2] + "\r"
            )
        return [clean(line.rstrip("\r").rpartition("\r")[2]) for line in whole]


class Terminal:
    """A Watcher that prints. On a terminal a live bar stands below the log; elsewhere bytes pass as they are."""

    def __init__(self, yes: bool, json: bool = False) -> None:
        self.yes = yes
        self.out = sys.stderr if json else sys.stdout  # JSON has stdout for itself
        self.live_possible = self.out.isatty() and sys.stderr.isatty()
        self.lines = Lines()
        self.bar: Live | None = None

    # ---- the Watcher's part ----

    def say(self, line: str) -> None:
        """A step, on stderr."""
        self._print_err(clean(line))

    def agrees(self, proposal: Proposal) -> bool:
        """Shows what will be rented, and asks unless it's free or --yes was said. Raises UsageError."""
        for line in describe(proposal):
            self._print_err(line)
        if self.yes or proposal.offer.price_per_hour == 0:
            return True
        if not sys.stdin.isatty():
            raise UsageError("this is asked before anything is rented, and nobody is here to say yes", "add --yes")
        return self.confirms("rent it?")

    def confirms(self, question: str) -> bool:
        """Asks; where --yes was said, or nobody is there to answer, it's a yes."""
        if self.yes or not sys.stdin.isatty():
            return True
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes", "是")

    def log(self, data: bytes) -> None:
        """The job's own output, on stdout; with --json on stderr."""
        if not self.out.isatty():
            self.out.buffer.write(data)
            self.out.buffer.flush()
            return
        for line in self.lines.feed(data):
            if self.bar:
                from rich.text import Text

                self.bar.console.print(Text(line), soft_wrap=True)
            else:
                print(line, file=self.out, flush=True)

    def progress(self, progress: dict[str, Any] | None) -> None:
        """The live bar; nothing where there is no terminal."""
        if not self.live_possible or not progress:
            return
        if progress.get("moving") == "":
            self.close()
            return
        if self.bar is None:
            from rich.console import Console
            from rich.live import Live

            self.bar = Live(console=Console(file=sys.stderr), transient=True, refresh_per_second=8)
            self.bar.start()
        with contextlib.suppress(OSError):
            self.bar.update(bar_line(progress, self.bar.console.width))

    def close(self) -> None:
        """Takes the bar away and prints what is left of the last line."""
        if self.bar is not None:
            bar, self.bar = self.bar, None
            with contextlib.suppress(OSError):
                bar.stop()
        rest = clean(self.lines.rest.rstrip("\r").rpartition("\r")[2])
        if rest:
            with contextlib.suppress(OSError):
                print(rest, file=self.out, flush=True)
        self.lines.rest = ""

    def _print_err(self, line: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone; what is being done must still be done
            if self.bar is not None:
                from rich.text import Text

                self.bar.console.print(Text(line, style="dim"), soft_wrap=True)
            else:
                print(line, file=sys.stderr, flush=True)


# ---- words --------------------------------------------------------------------------------------------------------


def describe(proposal: Proposal) -> list[str]:
    """The plan: the machine, its price, its end, and what else there would be."""
    from orchestrator.session import moment  # with SSH, which not all who tell need

    offer = proposal.offer
    gpus = f", {offer.gpus} x {offer.gpu}" if offer.gpus else ""
    spot = ", spot" if offer.spot else ""
    until = moment(time.time() + proposal.lifetime_s)
    several = proposal.nodes > 1
    each, count = (" each", f"{proposal.nodes} x ") if several else ("", "")
    most = f", at most {proposal.at_most:.2f} {offer.currency}" if proposal.at_most else ""
    local = offer.instance_type == proposal.title
    kind = offer.instance_type if local else f"{proposal.title}, {place(offer)}: {offer.instance_type}"
    lines = [
        f"session   {proposal.session}",
        f"{'machines' if several else 'machine '}  {count}{kind}{gpus}"
        f", {offer.cpus} CPUs, {offer.memory_gib:g} GiB{spot}",
        f"price     {offer.price}{each}{most}",
        f"ends      {until} at the latest, by itself",
    ]
    if offer.price_source:
        stock = {True: "; in stock", False: "; sold out", None: ""}[offer.in_stock]
        lines.insert(3, f"said by   {', '.join(filter(None, (offer.price_source, offer.price_date)))}{stock}")
    lines += [f"or else   {o.provider} {place(o)}: {o.instance_type}, {o.price}" for o in proposal.offers[1:]]
    lines += [f"note      {caveat}" for caveat in proposal.caveats]
    return lines


def bar_line(progress: dict[str, Any], width: int) -> Table:
    """The job's progress on one line of that width; what doesn't fit is cut."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    def number(name: str) -> float | None:
        value = progress.get(name)
        with contextlib.suppress(OverflowError):  # an int without end
            return float(value) if isinstance(value, (int, float)) else None
        return None

    counts = (number(name) or 0 for name in ("epoch", "epochs", "batch", "batches"))
    epoch, epochs, batch, batches = (count if 0 <= count < math.inf else 0 for count in counts)
    done = (epoch + (batch / batches if batches else 0)) / epochs if epochs else 0
    loss, accuracy, speed, left = (number(name) for name in ("loss", "accuracy", "images_per_s", "eta_s"))
    words = [f"epoch {min(epoch + 1, epochs):.0f}/{epochs:.0f}"]  # the job says how many are done
    words += [f"{duration(left)} left"] if left is not None else []
    words += [f"loss {loss:.4f}"] if loss is not None else []
    words += [f"accuracy {100 * accuracy:.1f} %"] if accuracy is not None else []
    words += [f"{speed:,.0f} images/s"] if speed is not None else []
    words += [f"batch {batch:.0f}/{batches:.0f}"]
    if "moving" in progress:  # bytes, not epochs
        moved, total, speed = (number(name) or 0 for name in ("bytes", "of", "bytes_per_s"))
        done = moved / total if total > 0 else 0
        words = [f"{moved / 2**20:,.0f} of {total / 2**20:,.0f} MiB", f"{speed / 2**20:,.1f} MiB/s"]
        words += [f"{duration(left)} left"] if left is not None else []
        words += [clean(str(progress["moving"]))]
    length = max(min(30, width - 60), 5)
    line = Table.grid(padding=(0, 1))
    text = Text("  ".join(words), no_wrap=True, overflow="crop")
    text.truncate(max(width - length - 2, 10))
    line.add_row(ProgressBar(total=1, completed=min(done, 1), width=length), text)
    return line


def duration(seconds: float) -> str:
    """Seconds in words: 42 s, 3 min 20 s, 2 h 5 min."""
    if not math.isfinite(seconds):
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def cost(session: Session) -> str:
    """What all machines of the session have cost so far."""
    if not session.history:
        return "-"
    sums: dict[str, float] = {}
    for machine in session.history:
        amount = machine.cost(time.time())
        if amount is None:
            return "unknown"
        sums[machine.currency] = sums.get(machine.currency, 0) + amount
    return " + ".join(f"{amount:.2f} {currency}" for currency, amount in sums.items() if currency) or "free"


def sessions_table(all_seen: list[Seen]) -> None:
    """Sessions and their jobs, as `status` shows them."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 200, markup=False, emoji=False)
    table = Table("SESSION", "PROVIDER", "MACHINE", "STATE", "ENDS", "COST", box=SIMPLE_HEAD)
    jobs = Table("SESSION", "JOB", "STATE", "COMMAND", box=SIMPLE_HEAD)
    jobs.add_column("RESULTS", overflow="fold")
    for seen in all_seen:
        session, machine = seen.session, seen.session.machine
        silent = ", not every machine answers" if len(session.machines) > 1 else ", does not answer"
        state = session.state + (silent if seen.answers is False else "")
        ends = "-" if session.state == "closed" else f"in {duration(max(session.expires_at - time.time(), 0))}"
        table.add_row(
            session.name,
            session.provider + " (simulated)" * session.simulated,
            (machine.instance_type + f" x {len(session.machines)}" * (len(session.machines) > 1)) if machine else "-",
            state,
            ends,
            cost(session),
        )
        for job in seen.jobs:
            reason = f": {job.reason}" if job.reason else ""
            jobs.add_row(
                session.name,
                str(job.number),
                clean(job.state + reason),
                clean(job.command)[:60],
                job.where if job.pulled else "not home yet",
            )
    console.print(table)
    if jobs.row_count:
        console.print(jobs)
    for seen in all_seen:
        if seen.problem:
            console.print(clean(f"{seen.session.name}: {seen.problem}"))


def offers_table(offers: list[Offer], problems: list[str]) -> None:
    """Offers as `offers` lists them, with where each price is from and of when; and whose aren't of now, and why."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 140, markup=False, emoji=False)
    table = Table("CLOUD", "REGION", "ZONE", "TYPE", "GPUS", "CPUS", "MEMORY", "PRICE", "STOCK", box=SIMPLE_HEAD)
    sources: list[str] = []
    rows = by_zones(offers)
    for one, zones in rows[:SHOWN_OFFERS]:
        source = f"{one.price_source}, {one.price_date}".strip(", ")
        if source and source not in sources:
            sources.append(source)
        price = f"{one.price} [{sources.index(source) + 1}]" if source else one.price
        table.add_row(
            one.provider,
            one.region,
            zones,
            one.instance_type + ("" if one.confirmed else " ?"),
            gpus_of(one),
            str(one.cpus),
            f"{one.memory_gib:g} GiB",
            Text(price),
            {True: "yes", False: "no", None: "-"}[one.in_stock],
        )
    console.print(table)
    lines = [f"[{number}] {source}" for number, source in enumerate(sources, 1)]
    if any(not one.confirmed for one in offers):
        lines.append("? nobody has yet seen the cloud itself offer this there")
    if len(rows) > SHOWN_OFFERS:
        lines.append(f"shown {SHOWN_OFFERS} of {len(rows)}; --json lists all")
    for line in [*lines, *problems]:
        console.print(clean(line), highlight=False)


def leftovers_table(seen: Survey, chosen: list[Leftover]) -> None:
    """What the clouds have, and what becomes of each; then what could not be asked, or isn't shown by any list."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 180, markup=False, emoji=False)
    if seen.left:
        table = Table("CLOUD", "REGION", "WHAT", "ID", "SESSION", "", "WHERE TO SEE IT", box=SIMPLE_HEAD)
        for one in seen.left:
            thing = one.thing
            note = "to be removed" if one in chosen else f"kept: {one.whose or 'not named'}"
            row = (one.provider, thing.region, thing.kind, thing.id, thing.session, note, thing.console_url)
            table.add_row(*(Text(clean(word)) for word in row))
        console.print(table)
    lines = [f"asked     {name}: {', '.join(regions)}" for name, regions in seen.asked.items()]
    lines += [f"not asked {name}: {why}" for name, why in seen.unasked.items()]
    lines += [f"no answer {one}" for one in seen.unheard]
    lines += [f"not shown {name}, by any of its lists: {', '.join(kinds)}" for name, kinds in seen.blind.items()]
    for line in lines:
        console.print(clean(line), highlight=False)


def by_zones(offers: list[Offer]) -> list[tuple[Offer, str]]:
    """Offers that differ by their zone alone, as one, with their zones: "cn-hangzhou-i, -j"; "any": not known which."""
    rows: dict[Offer, list[str]] = {}
    for one in offers:
        rows.setdefault(replace(one, zone=""), []).append("any" if "*" in one.zone else one.zone)
    return [
        (one, ", ".join([first, *(zone.removeprefix(one.region) for zone in others)]))
        for one, (first, *others) in rows.items()
    ]


def place(offer: Offer) -> str:
    """Where it is: the zone, else the region."""
    known = offer.zone.startswith(offer.region) and "*" not in offer.zone
    return offer.zone if known else offer.region


def gpus_of(offer: Offer) -> str:
    """The GPUs of an offer, with the memory of each."""
    memory = f" {offer.gpu_memory_gib:g} GiB" if offer.gpu_memory_gib else ""
    return f"{offer.gpus} x {offer.gpu}{memory}" if offer.gpus else "-"
