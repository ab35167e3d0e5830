"""The results' way home: of one job or of all, from every machine, from those that are left, before they are ended.

A machine is ended once all that it has is at home and checked; what can't be had is named.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from infra import provider
from orchestrator import bucket, jobs, payload, sync
from orchestrator.arrivals import some
from orchestrator.errors import OrchestrateError, Refused, TransferIncomplete, Unreachable
from orchestrator.fleet import Fleet, Part
from orchestrator.session import missing
from orchestrator.ssh import Host
from orchestrator.store import Job, MachineRow, Session, Store
from orchestrator.watch import Watcher
from orchestrator.wire import MachineError


@contextlib.contextmanager
def coming_home(job: Job) -> Iterator[None]:
    """Around the results' way home: a line that breaks then leaves no fate unknown, only a transfer incomplete."""
    try:
        yield
    except Unreachable as error:
        raise TransferIncomplete(
            f"{error}; not all results of job {job.number} are here", "`orchestrate pull` goes on where it was cut"
        ) from error


def bring_home(fleet: Fleet, store: Store, job: Job, watcher: Watcher) -> sync.Pulled:
    """All results of a job that has ended, from every machine, verified.

    The first machine's come last: the record says that the job is at home only when all of it is. What is no file, or
    can't be read, is named: it goes with the machine.
    """
    fleet = fleet.of(job.node)
    parts = fleet.parts(store, job)
    pulled = sync.Pulled({}, 0, 0, [])
    for node in reversed(range(len(parts))):
        with had_by_machine(*parts[node]), fleet.hosts[node].agent() as wire:
            one = jobs.bring_home(wire, *parts[node], True, watcher.progress, watcher.say)
            pulled = sync.together(pulled, one, f"node-{node}/" if node else "")
    if pulled.skipped:
        watcher.say(f"job {job.number}: not taken (links, not readable, or ours): {some(pulled.skipped, 5)}")
    return pulled


def bring_everything_home(store: Store, session: Session, cloud: provider.Cloud, watcher: Watcher) -> None:
    """Every job's results that aren't home yet; running jobs are stopped, with time for a checkpoint."""
    waiting = [job for job in store.jobs(session) if not job.pulled]
    if not waiting or session.machine is None:
        return
    listed = ", ".join(str(job.number) for job in waiting)
    kept: TransferIncomplete | Refused | None = None
    try:
        with Fleet(session) as fleet:
            fleet.refresh(store, waiting)
            for job in reversed(waiting):  # the queued ones first, so that none starts meanwhile
                if (now := store.reread(job)).state == "lost" or not now.ended:  # its machine may begin it again
                    stop(fleet, store, job, watcher)
            for job in (job for job in waiting if not store.reread(job).pulled):
                try:
                    bring_home(fleet, store, job, watcher)
                    reason = store.reread(job).reason
                    watcher.say(f"job {job.number}: results in {job.where}" + (f"; {reason}" if reason else ""))
                except (TransferIncomplete, Refused) as error:  # the others' results may come all the same
                    watcher.say(f"job {job.number}: {error}")
                    kept = error
    except Unreachable as error:
        gone = missing(session, session.machines)
        store.gone(session, gone)
        if not gone:
            raise Unreachable(
                f"{error}; the results of job {listed} are still on the machine, which is kept",
                f"try again; `orchestrate down {session.name} --discard` gives the results up",
            ) from error
        if len(gone) < len(session.machines):
            listed = bring_what_is_there(store, session, waiting, gone, watcher)
            if not listed:
                return
            ended = ", ".join(str(machine.node) for machine in gone)
            raise TransferIncomplete(
                f"machine {ended} of {session.name!r} has ended by itself, and what it had of job {listed} did not all "
                "come home; the others are kept, and go on costing what they cost",
                f"`orchestrate {'up' if cloud.keeps_disk else 'recover'} {session.name}` makes it anew; `orchestrate "
                f"down {session.name} --discard` gives up what is not here",
            ) from error
        raise TransferIncomplete(
            f"the machine has ended by itself, and the results of job {listed} did not all come home"
            + bucket.mention(session, waiting),
            (
                f"`orchestrate up {session.name}` starts it again, with them on it"
                if cloud.keeps_disk
                else "no machine bills"
            )
            + f"; `orchestrate down {session.name} --discard` gives them up and closes the session",
        ) from error
    if isinstance(kept, Refused):
        raise kept
    if kept is not None:
        raise TransferIncomplete(f"{kept}; the machine is kept, and goes on costing what it costs", kept.hint)


def bring_what_is_there(
    store: Store, session: Session, waiting: Sequence[Job], gone: Sequence[MachineRow], watcher: Watcher
) -> str:
    """Of each job what machines have that are still there. Returns the numbers of those that are not all at home."""
    behind, lost = [], {machine.node for machine in gone}
    with Fleet(session, past_end=True) as fleet:
        for job in (job for job in waiting if not store.reread(job).pulled):
            if job.node is None or job.node in lost:
                bring_rest_home(store, session, job, gone, watcher)
                behind.append(str(job.number))
            else:
                stop(fleet, store, job, watcher)
                bring_home(fleet, store, job, watcher)
    return ", ".join(behind)


def bring_rest_home(
    store: Store, session: Session, job: Job, gone: Sequence[MachineRow], watcher: Watcher
) -> tuple[list[MachineRow], list[MachineRow]]:
    """Ends the job's parts on the machines that are still there, and brings home what they have written.

    Returns those on which a part does not end whatever is done, which are of no more use than one that is gone, and
    those from which not all came: what isn't here is on their disks.
    """
    stuck, behind = list[MachineRow](), list[MachineRow]()
    grace_s = payload.setting(job, "stop_grace", 30)
    with Fleet(session, past_end=True) as whole:
        fleet = whole.of(job.node)
        parts, say = fleet.parts(store, job), [one.say for one in fleet.watchers(watcher)]

        def end(node: int, host: Host) -> None:
            part, machine = parts[node][1], fleet.machines[node]
            if machine in gone:
                return
            record = Part(store, part)  # to the record the job is lost, whatever becomes of this part
            try:
                with had_by_machine(record, part), host.agent() as wire:
                    jobs.stop(wire, record, part, grace_s, say[node])
                    jobs.bring_home(wire, record, part, final=True, say=say[node])
            except (Unreachable, MachineError, TransferIncomplete) as error:
                say[node](f"its part of job {job.number} did not all come home: {error}")
                behind.append(machine)
            except Refused:
                raise
            except OrchestrateError as error:  # it does not end
                say[node](f"{error}; its machine is made anew too")
                stuck.append(machine)

        fleet.each(end)
    return stuck, behind


def stop(fleet: Fleet, store: Store, job: Job, watcher: Watcher) -> None:
    """Ends the job on every machine, with time for a checkpoint."""
    fleet = fleet.of(job.node)
    parts, watchers = fleet.parts(store, job), fleet.watchers(watcher)
    grace_s = payload.setting(job, "stop_grace", 30)

    def end(node: int, host: Host) -> None:
        try:
            with host.agent() as wire:
                jobs.stop(wire, *parts[node], grace_s, watchers[node].say)
        except MachineError as error:
            if error.kind != "no-job":  # then nothing of it runs there
                raise

    fleet.each(end)


@contextlib.contextmanager
def had_by_machine(record: jobs.Record, part: Job) -> Iterator[None]:
    """Where the machine has nothing of a job, as one made anew before the job goes on there, what is at home is all."""
    try:
        yield
    except MachineError as error:
        if error.kind != "no-job":
            raise
        ended = {} if part.ended else {"state": "lost", "reason": "its machine has nothing of it"}
        record.update_job(part, pulled=1, **ended)
