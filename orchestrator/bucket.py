"""Checkpoints in an object store (S3's API: OSS, COS, OBS, or any other), seen from home.

    place(config, session)      where a job's checkpoints go, without a secret in it: its run.json keeps that
    grant(session, job, node)   addresses to write there, signed here: all that a machine is ever given
    renewed(...)                new ones, as long as a command follows the job
    restore(...)                what the store has, unpacked on the next machine, where that is newer than what is home
    remove(...)                 nothing is left there once the session is down, unless it is newer than what came home

The data goes from machine to store to machine; `orchestrator/remote/bucket.py` is the machine's half.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from infra.credentials import of_store
from orchestrator import jobs
from orchestrator.beside import beside
from orchestrator.errors import OrchestrateError, Unreachable, UsageError
from orchestrator.session import mapped
from orchestrator.wire import MachineError, Wire, understood

if TYPE_CHECKING:
    from infra.provider import Credentials
    from orchestrator.config.fields import Config
    from orchestrator.ssh import Host
    from orchestrator.store import Job, Session, Store

Say = Callable[[str], None]
STORES = {  # the clouds' own, by their documents; none was called
    "aliyun": "https://s3.oss-{region}.aliyuncs.com",
    "tencent": "https://cos.{region}.myqcloud.com",
    "huawei": "https://obs.{region}.myhuaweicloud.com",
}
DOMAINS = {"aliyuncs.com": "aliyun", "myqcloud.com": "tencent", "myhuaweicloud.com": "huawei"}
AMAZON = "aws"
LONGEST_S = 7 * 86400  # that an address may be valid, by the signature's own rule (version 4)
FETCH_S, SLOW = 6 * 3600, 1 << 20  # for a machine to fetch an archive, or longer: at so many bytes a second
RENEW_S = 900.0  # a key that is itself lent for an hour makes addresses that end with it
KIND = "application/octet-stream"  # signed with the address, as the machine sends it
PIECE, MOST_PIECES = 4 << 30, 64  # an archive is cut into objects of so many bytes: stores take 5 GiB in a request
POINTER, SLOTS = "latest.json", (0, 1)  # archives take turns


@dataclass(frozen=True)
class Place:
    """A store, a bucket and a prefix; whose key opens it; how often checkpoints go there. Nothing in it is secret."""

    bucket: str
    prefix: str
    endpoint: str  # empty: Amazon's own
    region: str
    owner: str  # the cloud whose key it is, or "aws"
    every_s: int
    keep: bool

    def key(self, name: str) -> str:
        """An object's name below the prefix."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def __str__(self) -> str:
        return "/".join(filter(None, ("s3:/", self.bucket, self.prefix)))


@dataclass(frozen=True)
class Archive:
    """What the store has of a job, as the pointer there says."""

    slot: int
    sha256: str
    size: int
    piece: int  # bytes of each of the objects that it is in, but for the last
    files: int
    at: float  # by the machine's clock, as it was packed
    of: float | None  # when the job had started there
    last: bool  # the job had ended, and wrote nothing after

    def objects(self) -> list[str]:
        """What it is in, in order."""
        return [object_name(self.slot, number) for number in range(-(-self.size // self.piece))]


def object_name(slot: int, number: int) -> str:
    """A piece of an archive: put together by name, they are a tar file."""
    return f"{slot}.{number:02}.tar"


# ---- where --------------------------------------------------------------------------------------------------------


def check(config: Config, providers: Collection[str], simulated: bool) -> None:
    """Raises UsageError where a bucket is named that these providers' sessions can't use from here."""
    if config.checkpoints.bucket:
        boto3()
        if len(providers) > 1 and not config.checkpoints.endpoint:
            raise UsageError(
                f"the bucket {config.checkpoints.bucket} is in one cloud, and {', '.join(providers)} may be taken",
                "name the store's address as checkpoints.endpoint, or one provider",
            )
        for provider in providers:
            credentials(owner_of(config.checkpoints.endpoint, provider, simulated))


def place(config: Config, session: Session) -> Place | None:
    """Where the file wants the checkpoints of this session's jobs; None: in no store. Raises UsageError."""
    wanted = config.checkpoints
    if not wanted.bucket:
        return None
    owner = owner_of(wanted.endpoint, session.provider, session.simulated)
    own = session.machine.region if session.machine and owner == session.provider else ""
    region = wanted.region or region_in(wanted.endpoint or "", owner) or own or credentials(owner).region or "us-east-1"
    endpoint = wanted.endpoint or STORES.get(owner, "").format(region=region)
    bucket, _, prefix = wanted.bucket.removeprefix("s3://").partition("/")
    return Place(bucket, prefix, endpoint, region, owner, wanted.every, wanted.keep)


def owner_of(endpoint: str | None, provider: str, simulated: bool) -> str:
    """Whose store it is, and so whose key opens it. Raises UsageError."""
    if endpoint:
        host = urlsplit(endpoint).hostname or ""
        return next((name for domain, name in DOMAINS.items() if host.endswith("." + domain)), AMAZON)
    if provider in STORES and simulated:
        raise UsageError(
            "a simulated cloud has no object store, and the real one's is not for rehearsals",
            "name another as checkpoints.endpoint, such as http://127.0.0.1:9000",
        )
    return provider if provider in STORES else AMAZON


def region_in(endpoint: str, owner: str) -> str:
    """The region that an address of a cloud's store names."""
    found = re.search(r"//(?:s3\.)?(?:oss-|cos\.|obs\.)([a-z]+-[a-z0-9-]+?)(?:-internal)?\.", endpoint)
    return found[1] if found and owner in STORES else ""


def credentials(owner: str) -> Credentials:
    """The key that opens the store, from where its tools keep it. Raises UsageError."""
    with mapped():
        if owner == AMAZON:
            return of_store(os.environ, Path.home())
        import importlib

        rented = importlib.import_module(f"infra.clouds.{owner}").RENTED
        found: Credentials = rented.credentials(os.environ, Path.home())
        return found


def place_of(job: Job) -> Place | None:
    """Where that job's checkpoints go, as its run.json has it."""
    said = run_json(job.results).get("bucket")
    with contextlib.suppress(TypeError):
        return Place(**said) if said else None
    return None


def run_json(results: Path) -> dict[str, Any]:
    """What a results folder says of its run."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((results / "run.json").read_text("utf-8", "surrogateescape"))
        return found if isinstance(found, dict) else {}
    return {}


def folder(session: Session, job: Job, node: int) -> str:
    """Where below the prefix a job's part is, on whichever machine it runs."""
    return f"{session.name}/{job.number}-{job.run_id[:12]}/{job.node or node}"


def boto3() -> Any:
    """The package, imported only here. Raises UsageError with the command that installs it."""
    try:
        import boto3  # type: ignore[import-untyped]  # no stubs among our tools
    except ImportError as error:
        raise UsageError(
            f"a package for checkpoints in a bucket isn't installed: {error.name}", "pip install 'orchestrate[bucket]'"
        ) from error
    return boto3


def client(place: Place) -> Any:
    """The store's API. Raises UsageError."""
    package, key = boto3(), credentials(place.owner)
    from botocore.config import Config as Settings  # type: ignore[import-untyped]

    ours = place.owner in STORES or not place.endpoint
    settings = Settings(
        signature_version="s3v4",
        s3={"addressing_style": "virtual" if ours else "path"},
        request_checksum_calculation="when_required",  # else in trailers, which OSS refuses
        response_checksum_validation="when_required",
        connect_timeout=5,
        read_timeout=20,
        retries={"mode": "standard", "total_max_attempts": 2},
    )
    return package.client(
        "s3",
        endpoint_url=place.endpoint or None,
        region_name=place.region,
        aws_access_key_id=key.key_id,
        aws_secret_access_key=key.secret,
        aws_session_token=key.token or None,
        config=settings,
    )


@contextlib.contextmanager
def answering(place: Place) -> Iterator[None]:
    """The one edge where boto3's errors become ours. They name no key."""
    from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "an error")
        hint = "are bucket, endpoint, region and key those of one store?"
        raise OrchestrateError(f"{place} answers {code}", hint) from error
    except BotoCoreError as error:
        raise OrchestrateError(f"{place} can't be reached: {error}", "is checkpoints.endpoint right?") from error


# ---- there --------------------------------------------------------------------------------------------------------


def note(job: Job, config: Config, session: Session) -> None:
    """Notes in the job's run.json where its checkpoints go. Raises UsageError."""
    if (found := place(config, session)) is not None:
        jobs.note(job, bucket=asdict(found))


def grant(session: Session, job: Job, node: int = 0, again: Say | None = None) -> dict[str, Any] | None:
    """What the machine gets, to keep the job's checkpoints: addresses, until when, how often; None: there is no store.

    With `again`, for a job that goes on elsewhere: its next archive is to lie beside the one that it goes on from.
    Raises OrchestrateError.
    """
    place = place_of(job)
    if place is None:
        return None
    found = archives(session, job, node, again) if again else []
    store, now = client(place), time.time()
    valid_s = int(max(60, min(session.expires_at + 3600 - now, LONGEST_S)))
    name = folder(session, job, node)

    def put(file: str) -> str:
        what = {"Bucket": place.bucket, "Key": place.key(f"{name}/{file}"), "ContentType": KIND}
        return str(store.generate_presigned_url("put_object", Params=what, ExpiresIn=valid_s))

    return {
        "put": [[put(object_name(slot, number)) for number in range(MOST_PIECES)] for slot in SLOTS],
        "piece": PIECE,
        "pointer": put(POINTER),
        "slot": 1 - found[0].slot if found else 0,
        "before": asdict(found[0]) if found else None,
        "until": now + valid_s,
        "every_s": place.every_s,
        "patterns": job.outputs,
    }


@contextlib.contextmanager
def renewed(host: Host, session: Session, job: Job, node: int, say: Say) -> Iterator[None]:
    """Gives the machine new addresses at once and every quarter of an hour, while the caller follows the job."""
    if place_of(job) is None:
        yield
        return

    def loop(over: threading.Event) -> None:
        pause_s, complaint = 0.0, ""
        while not over.wait(pause_s):
            pause_s = RENEW_S
            try:
                with host.agent() as wire:
                    wire.call("bucket", job=job.number, grant=grant(session, job, node))
            except Unreachable:
                pause_s = 20.0
            except (OrchestrateError, OSError) as error:
                if str(error) != complaint:
                    complaint = str(error)
                    say(f"the checkpoints' addresses could not be renewed: {error}")

    with beside(loop, "bucket"):
        yield


# ---- and back -----------------------------------------------------------------------------------------------------


def archives(session: Session, job: Job, node: int, say: Say) -> list[Archive]:
    """What the store has of the job, newest first; where it can't be asked, nothing, and that is said."""
    try:
        return look(session, job, node, say)
    except OrchestrateError as error:
        say(f"the checkpoints in the bucket can't be looked for: {error}")
        return []


def look(session: Session, job: Job, node: int, say: Say) -> list[Archive]:
    """What the store has of the job, newest first. Raises OrchestrateError where it can't be asked."""
    place = place_of(job)
    if place is None:
        return []
    store = client(place)
    try:
        with answering(place):
            key = place.key(f"{folder(session, job, node)}/{POINTER}")
            said = store.get_object(Bucket=place.bucket, Key=key)["Body"].read(1 << 16)
    except OrchestrateError as error:
        if "NoSuchKey" not in str(error):
            raise
        return []
    try:
        pointer = json.loads(said)
        return [archive_of(one) for one in (pointer["latest"], pointer["before"]) if one]
    except (ValueError, TypeError, KeyError):
        say(f"what {place} says of the job's checkpoints is not what our machines write; it isn't used")
        return []


def archive_of(said: dict[str, Any]) -> Archive:
    """An archive as the pointer has it. Raises ValueError, TypeError, KeyError."""
    of = said["of"]
    found = Archive(
        int(said["slot"]), str(said["sha256"]), int(said["size"]), int(said["piece"]), int(said["files"]),
        float(said["at"]), None if of is None else float(of), said["last"] is True,
    )  # fmt: skip
    if found.slot not in SLOTS or not re.fullmatch("[0-9a-f]{64}", found.sha256):
        raise ValueError(said)
    if found.piece < 1 or not 0 <= found.size <= found.piece * MOST_PIECES:
        raise ValueError(said)
    return found


def restore(wire: Wire, session: Session, job: Job, node: int, say: Say) -> str | None:
    """Has the machine fetch what the job's part had written, where the store's is newer than what came home.

    Returns the tree that it is there; None: what is home is to be sent. Raises Unreachable.
    """
    place = place_of(job)
    if place is None:
        return None
    store, part = client(place), place.key(folder(session, job, node))
    home = came_home(job, node)
    for archive in archives(session, job, node, say):
        if not is_newer(archive, home):
            say(f"what came home is newer than the bucket's checkpoint of {clock(archive.at)}: it is sent from here")
            return None
        keys = [{"Bucket": place.bucket, "Key": f"{part}/{name}"} for name in archive.objects()]
        valid_s = min(max(FETCH_S, archive.size // SLOW), LONGEST_S)
        urls = [store.generate_presigned_url("get_object", Params=key, ExpiresIn=valid_s) for key in keys]
        offer = {"urls": urls, "sha256": archive.sha256, "size": archive.size, "files": archive.files}
        say(f"the bucket's checkpoint of {clock(archive.at)} is newer than what came home; the machine fetches it")
        try:
            answer = wire.call("restore", patience_s=120 + archive.size / SLOW, offer=offer)
        except MachineError as error:
            say(f"that checkpoint can't be used: {error}")
            continue
        with understood():
            return str(answer["tree"])
    return None


def came_home(job: Job, node: int) -> dict[str, Any]:
    """When what is home of that part was read on the machine, and of which start; empty where nothing is."""
    return run_json(job.results / f"node-{node}" if node else job.results).get("home") or {}


def is_newer(archive: Archive, home: dict[str, Any]) -> bool:
    """Whether the store's is newer than what came home, or is the same: then it needn't be sent from here."""
    of = home.get("of")  # the start of the job that came home as it ended
    return archive.at > home.get("at", 0.0) or (archive.last and of is not None and archive.of == of)


def clock(seconds: float) -> str:
    """A time of today for a person's eyes."""
    return time.strftime("%H:%M:%S", time.localtime(seconds))


# ---- the end ------------------------------------------------------------------------------------------------------


def mention(session: Session, jobs: list[Job]) -> str:
    """Where the last checkpoints of these jobs are, for an error that says that they didn't come home."""
    places = [(place_of(job), folder(session, job, 0)) for job in jobs]
    named = [f"s3://{place.bucket}/{place.key(name).rpartition('/')[0]}" for place, name in places if place]
    return f"; what the bucket has of it is in {', '.join(named)}, until `down`" if named else ""


def remove(record: Store, session: Session, say: Say, discard: bool = False) -> list[str]:
    """Removes what the store has of a session whose machines have ended; returns what it could not, in words.

    What is newer there than what came home of a job stays, unless `discard`. A store that fails is asked once. Raises
    nothing of its own.
    """
    failed: dict[tuple[str, str], Exception] = {}
    left: list[str] = []
    for job in record.jobs(session):
        place = place_of(job)
        if place is None:
            continue
        nodes = range(1 if job.node is not None else max(len(session.machines), 1))
        folders = [place.key(folder(session, job, node)) for node in nodes]
        whole = f"s3://{place.bucket}/{folders[0].rpartition('/')[0]}"
        if place.keep:
            say(f"the checkpoints of job {job.number} stay in {whole}")
            continue
        is_home = discard or (job.pulled and job.state != "lost")
        try:
            if earlier := failed.get((place.endpoint, place.bucket)):
                raise earlier
            if is_home or not any(is_ahead(session, job, node, say) for node in nodes):
                empty(place, folders)
                continue
            words = f"the last checkpoints of job {job.number} did not come home: they stay in {whole}"
        except (OrchestrateError, ValueError) as error:  # ValueError: of an address that is none
            failed[place.endpoint, place.bucket] = error
            named = ", ".join(f"s3://{place.bucket}/{one}" for one in folders)
            words = f"the checkpoints of job {job.number} may still be in {named}: {error}"
            left.append(words)
        else:
            say(words)
        with contextlib.suppress(OrchestrateError):  # it has been said
            record.note(session, words)
    return left


def is_ahead(session: Session, job: Job, node: int, say: Say) -> bool:
    """Whether the store's archive of that part is newer than what came home. Raises OrchestrateError."""
    found = look(session, job, node, say)
    return bool(found) and found[0].at > came_home(job, node).get("at", 0.0)


def empty(place: Place, folders: list[str]) -> None:
    """Removes what is in these folders. Raises OrchestrateError."""
    store = client(place)
    with answering(place):
        for prefix in folders:
            there = store.list_objects(Bucket=place.bucket, Prefix=f"{prefix}/").get("Contents", [])
            for key in (one["Key"] for one in there):
                store.delete_object(Bucket=place.bucket, Key=key)
