"""Checkpoints in an object store: real agents and supervisors, and a bucket on this computer that checks signatures."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import orchestrator.remote
from orchestrator import bucket as b
from orchestrator.config.fields import Config
from orchestrator.errors import OrchestrateError, UsageError
from orchestrator.remote import bucket as there
from orchestrator.store import Job, Session, Store
from tests.infra import bucket_server
from tests.infra.bucket_server import Bucket
from tests.orchestrator.machines import Machine, pythons

OLDEST = [path for name, path, missing in pythons() if not missing][:2][-1]  # "this" is the first, then by age


@pytest.fixture(scope="module")
def served() -> Iterator[Bucket]:
    with bucket_server.running() as bucket:
        yield bucket


@pytest.fixture
def bucket(served: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket, and the key to it in the environment."""
    for kept in (served.kept, served.asked, served.cut, served.refused):
        kept.clear()
    for name in [name for name in os.environ if name.startswith(("AWS_", "ALIBABA_", "TENCENTCLOUD_", "HW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", bucket_server.KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", bucket_server.SECRET)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return served


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    """Makes machines, of the oldest Python that is here."""
    made: list[Machine] = []

    def make(name: str) -> Machine:
        (tmp_path / name).mkdir()
        made.append(Machine(tmp_path / name, OLDEST, NO_PROXY="127.0.0.1"))
        return made[-1]

    yield make
    for one in made:
        one.end()


def session_of(tmp_path: Path, lasts_s: float = 7200) -> Session:
    now = time.time()
    return Session(1, "s", "local", "ready", tmp_path, now, now + lasts_s, None)


def job_of(tmp_path: Path, bucket: Bucket, every_s: int = 1, **place: Any) -> Job:
    """A job whose run.json names the bucket."""
    results = tmp_path / "results"
    results.mkdir(exist_ok=True)
    where = b.Place(bucket_server.NAME, "runs", bucket.address, "any", b.AMAZON, every_s, False)
    (results / "run.json").write_text(json.dumps({"bucket": asdict(replace(where, **place))}))
    return Job(1, 1, "0123456789abcdef", "c", ["outputs"], "running", None, "", 0, None, None, results, 0, False)


def pointer(bucket: Bucket) -> dict[str, Any]:
    """What the bucket's pointer says; {} where there is none. Its latest archive is whole, whenever one looks."""
    kept = dict(bucket.kept)
    said = json.loads(kept.get("runs/s/1-0123456789ab/0/latest.json", b"{}"))
    if said:
        assert hashlib.sha256(archive(kept, said["latest"])).hexdigest() == said["latest"]["sha256"], said
    return said


def archive(kept: dict[str, bytes], one: dict[str, Any]) -> bytes:
    """Its pieces, put together."""
    pieces = range(-(-one["size"] // one["piece"]))
    return b"".join(kept[f"runs/s/1-0123456789ab/0/{one['slot']}.{number:02}.tar"] for number in pieces)


def both_whole(kept: dict[str, bytes]) -> dict[str, bytes]:
    """What is in the bucket, where both archives are those that the pointer names; else {}."""
    said = json.loads(kept["runs/s/1-0123456789ab/0/latest.json"])
    for one in (said["latest"], said["before"]):
        if hashlib.sha256(archive(kept, one)).hexdigest() != one["sha256"]:
            return {}
    return kept


STEPS = """
mkdir -p outputs/deep; n=$(cat outputs/deep/state 2>/dev/null || echo 0); echo "begins at $n"
while [ $n -lt 1000 ]; do
  n=$((n+1)); echo $n > outputs/.aside; mv outputs/.aside outputs/deep/state; sleep 0.2
done
"""


# ---- the way there and back ---------------------------------------------------------------------------------------


def test_what_a_job_has_written_goes_to_the_next_machine_without_crossing_the_client(
    bucket: Bucket, machines: Any, tmp_path: Path, eventually: Any
) -> None:
    session, job, said = session_of(tmp_path), job_of(tmp_path, bucket), []
    first, folder = machines("first"), "runs/s/1-0123456789ab/0"
    given = b.grant(session, job)
    assert given is not None and bucket_server.SECRET not in json.dumps(given)
    first.submit(1, STEPS, run_id=job.run_id, bucket={**given, "every_s": 0.3, "piece": 1024})
    eventually(lambda: pointer(bucket).get("before"), 60)  # twice, so that both places were used
    pieces = [f"{slot}.{number:02}.tar" for slot in (0, 1) for number in (0, 1)]  # a member is 1 KiB, and so the end
    assert {f"{folder}/{name}" for name in (*pieces, "latest.json")} <= set(bucket.kept)

    # what the machine holds: addresses in a file that nobody else reads, and in no program's words or variables
    assert (first.folder(1) / "bucket.json").stat().st_mode & 0o777 == 0o600
    for pid in first.processes():
        for name in ("cmdline", "environ"):
            text = Path("/proc", str(pid), name)
            assert not text.exists() or b"X-Amz" not in text.read_bytes()

    # an upload that breaks off: what the pointer names stays whole, and the next one mends it
    bucket.cut.update({"0.01.tar", "1.00.tar"})
    eventually(lambda: not bucket.cut, 60)
    assert pointer(bucket)["latest"]
    first.until_log(1, b"the checkpoint is in the bucket again", 60)
    assert b"warning: the checkpoint isn't in the bucket: 127.0.0.1" in first.log(1)
    assert b"X-Amz" not in first.log(1)
    first.end()
    written = int((first.folder(1) / "work/outputs/deep/state").read_text())
    latest = pointer(bucket)["latest"]

    second = machines("second")
    tree = b.restore(second.wire, session, job, 0, said.append)
    assert tree == latest["sha256"] and "is newer than what came home; the machine fetches it" in said[0]
    state = int((second.root / "trees" / tree / "outputs/deep/state").read_text())
    assert 1 <= state <= written
    again = b.grant(session, job, 0, said.append)
    assert again is not None and again["slot"] == 1 - latest["slot"], "what it goes on from isn't written over"
    second.submit(1, STEPS, run_id=job.run_id, bucket={**again, "every_s": 0.3}, restore=tree)
    second.wire.call("bucket", job=1, grant={**b.grant(session, job), "every_s": 0.3})  # type: ignore[dict-item]
    assert json.loads((second.folder(1) / "bucket.json").read_text())["slot"] == again["slot"], "nor when they are new"
    second.until_log(1, f"begins at {state}\n".encode(), 60)
    assert {who.split("/")[0] for how, key, who in bucket.asked if key.endswith(".tar")} == {"Python-urllib"}
    assert {key.rpartition("/")[2] for _, key, who in bucket.asked if "Boto3" in who} == {"latest.json"}
    whole = eventually(lambda: both_whole(dict(bucket.kept)), 60, 0.01)
    second.end()
    bucket.refused.add("PUT")

    # one that was damaged in the store isn't used; the one before it is, or else what came home
    third = machines("third")
    third.agent()
    bucket.kept.update(whole)
    last = pointer(bucket)
    key = f"{folder}/{last['latest']['slot']}.00.tar"
    bucket.kept[key] = bucket.kept[key][:-1] + b"x"
    assert b.restore(third.wire, session, job, 0, said.append) == last["before"]["sha256"]
    assert "what is in the store is damaged" in said[-2]
    bucket.kept.update({f"{folder}/{slot}.00.tar": b"" for slot in (0, 1)})
    assert b.restore(machines("fourth").wire, session, job, 0, said.append) is None
    bucket.kept[f"{folder}/latest.json"] = b'{"latest": {"slot": 7}, "before": null}'
    assert b.restore(third.wire, session, job, 0, said.append) is None and "it isn't used" in said[-1]


def test_a_store_that_cannot_be_reached_is_said_once_and_the_job_goes_on(
    bucket: Bucket, machines: Any, tmp_path: Path, eventually: Any
) -> None:
    with socket.socket() as closed:  # nobody listens there
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        given = b.grant(session_of(tmp_path), job_of(tmp_path, bucket, endpoint=nowhere))
        assert given is not None
        machine, said = machines("m"), b"warning: the checkpoint isn't in the bucket: 127.0.0.1"
        machine.submit(1, "until [ -e ../over ]; do sleep 0.1; done; echo done", bucket={**given, "every_s": 0.2})
        machine.until_log(1, said, 60)
        bucket.refused.add("PUT")  # and now one that answers, and refuses
        other = b.grant(session_of(tmp_path), job_of(tmp_path, bucket))
        assert other is not None
        machine.wire.call("bucket", job=1, grant={**other, "every_s": 0.2})
        machine.until_log(1, b"answers 403 AccessDenied", 60)
        machine.wire.call("bucket", job=1, grant={**other, "every_s": 0.2, "until": time.time() - 1})
        machine.until_log(1, b"its addresses have expired", 60)
        (machine.folder(1) / "over").touch()
        assert machine.wait(1, within_s=60)["state"] == "succeeded"
    assert machine.log(1).count(said) == 2 and machine.log(1).endswith(b"done\n")  # one warning for each cause
    assert bucket.kept == {} and not (machine.folder(1) / "bucket.json").exists()


def test_what_a_job_writes_as_its_machine_goes_down_is_put_there_before_the_end(
    bucket: Bucket, machines: Any, tmp_path: Path
) -> None:
    session, job, machine = session_of(tmp_path), job_of(tmp_path, bucket, every_s=3600), machines("m")
    script = "trap 'echo last > outputs/state; exit 0' TERM; echo up; while :; do sleep 0.1; done"
    machine.submit(1, script, run_id=job.run_id, bucket=b.grant(session, job), recover=True, env={"SECRET": "x"})
    machine.until_log(1, b"up", 60)
    os.kill(machine.supervisor(1), signal.SIGTERM)  # as a machine that shuts down does
    end = machine.wait(1, within_s=60)
    assert end["state"] == "lost" and end["reason"].startswith("shut down")
    [latest] = b.archives(session, job, 0, print)
    assert latest.last and latest.of == end["started_at"] and pointer(bucket)["latest"]["files"] == 1
    assert b.is_newer(latest, {"at": latest.at + 60, "of": latest.of}), "nothing was written after it"
    assert not b.is_newer(latest, {"at": latest.at + 60, "of": latest.of - 5.0}), "that was another start of the job"
    assert not b.is_newer(latest, {"at": latest.at + 60}) and b.is_newer(latest, {})


# ---- archives -----------------------------------------------------------------------------------------------------


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 3, target: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size if kind == tarfile.REGTYPE else 0, target
    return info.tobuf(tarfile.GNU_FORMAT) + (b"abc".ljust(512, b"\0") if info.size else b"")


END = b"\0" * 1024
HOSTILE = {
    "a path upwards": member("../out") + END,
    "a path upwards inside": member("outputs/../../out") + END,
    "an absolute path": member("/tmp/out") + END,
    "an empty part": member("outputs//out") + END,
    "a link": member("outputs", tarfile.SYMTYPE, target="/tmp") + member("outputs/out") + END,
    "a hard link": member("out", tarfile.LNKTYPE, target="/etc/passwd") + END,
    "a device": member("out", tarfile.CHRTYPE) + END,
    "a pipe": member("out", tarfile.FIFOTYPE) + END,
    "a file twice": member("out") + member("out") + END,
    "a file as a folder": member("out") + member("out/in") + END,
    "more than it can hold": member("out", size=10**9) + END,
    "not all of a file": member("out", size=3)[:515],
    "fewer files": END,
    "noise": bytes(range(256)) * 8,
    "nothing": b"",
    "a sparse file": member("out", tarfile.GNUTYPE_SPARSE) + END,
}


@pytest.mark.parametrize("archive", HOSTILE.values(), ids=HOSTILE.keys())
def test_an_archive_that_is_not_ours_writes_nothing_outside(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(archive)
    (tmp_path / "in").mkdir()
    with pytest.raises(there.Trouble):
        there.unpack(
            str(tmp_path / "archive"), str(tmp_path / "in"), archive.count(b"ustar")
        ) if archive != END else there.unpack(str(tmp_path / "archive"), str(tmp_path / "in"), 1)
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "in"}
    assert not Path("/tmp/out").exists()
    assert not any(path.is_symlink() for path in (tmp_path / "in").rglob("*"))


def test_what_is_packed_comes_out_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(orchestrator.remote.__file__).parent))
    work, into = tmp_path / "work", tmp_path / "into"
    into.mkdir()
    odd = os.fsdecode(b"outputs/\xff new\nline")
    long = f"outputs/{'a' * 200}/{'b' * 200}"
    for name in ("outputs/a", "outputs/d/run", odd, long):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(os.fsencode(name) * 100)
    (work / "outputs/d/run").chmod(0o700)
    (work / "outputs/link").symlink_to("/etc/passwd")
    os.mkfifo(work / "outputs/pipe")
    facts = there.pack(str(work), ["outputs", "outputs/a", "nothing"], str(tmp_path / "archive"), 10**9)
    assert facts["files"] == 4 and facts["size"] == (tmp_path / "archive").stat().st_size
    there.unpack(str(tmp_path / "archive"), str(into), 4)
    for name in ("outputs/a", "outputs/d/run", odd, long):
        assert (into / name).read_bytes() == os.fsencode(name) * 100
    assert (into / "outputs/d/run").stat().st_mode & 0o100 and not (into / "outputs/a").stat().st_mode & 0o100
    assert sum(path.is_file() for path in into.rglob("*")) == 4

    import outputs  # type: ignore[import-not-found]  # as it lies on a machine

    reads = iter(range(10**6))
    monkeypatch.setattr(outputs, "mark", lambda info: str(next(reads)))
    monkeypatch.setattr(there.time, "sleep", lambda seconds: None)
    with pytest.raises(there.Trouble, match="changes all the time"):
        there.pack(str(work), ["outputs"], str(tmp_path / "archive"), 10**9)
    with pytest.raises(there.Trouble, match="more than the 0 GiB"):
        there.pack(str(work), ["outputs"], str(tmp_path / "archive"), 4500)


# ---- where --------------------------------------------------------------------------------------------------------


def config_of(**checkpoints: Any) -> Config:
    return Config.model_validate({"checkpoints": {"bucket": "s3://my-bucket/runs/", **checkpoints}})


@pytest.mark.parametrize(
    ("provider", "checkpoints", "endpoint", "region", "owner"),
    [
        ("aliyun", {"region": "cn-hangzhou"}, "https://s3.oss-cn-hangzhou.aliyuncs.com", "cn-hangzhou", "aliyun"),
        ("tencent", {"region": "ap-guangzhou"}, "https://cos.ap-guangzhou.myqcloud.com", "ap-guangzhou", "tencent"),
        ("huawei", {"region": "cn-north-4"}, "https://obs.cn-north-4.myhuaweicloud.com", "cn-north-4", "huawei"),
        ("local", {"endpoint": "https://oss-cn-beijing-internal.aliyuncs.com"},
         "https://oss-cn-beijing-internal.aliyuncs.com", "cn-beijing", "aliyun"),
        ("aliyun", {"endpoint": "https://cos.ap-beijing.myqcloud.com/"}, "https://cos.ap-beijing.myqcloud.com",
         "ap-beijing", "tencent"),
        ("huawei", {"endpoint": "http://192.0.2.7:9000", "region": "x"}, "http://192.0.2.7:9000", "x", "aws"),
        ("local", {"region": "eu-central-1"}, "", "eu-central-1", "aws"),
        ("local", {"endpoint": "https://aliyuncs.com.evil.example"}, "https://aliyuncs.com.evil.example",
         "us-east-1", "aws"),
    ],
)  # fmt: skip
def test_a_store_is_that_of_the_sessions_cloud_or_the_one_that_is_named(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    provider: str, checkpoints: Any, endpoint: str, region: str, owner: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("ALIBABA_CLOUD_ACCESS_KEY_ID", "TENCENTCLOUD_SECRET_ID", "HW_ACCESS_KEY"):
        monkeypatch.setenv(name, f"id-of-{name}")
    for name in ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "TENCENTCLOUD_SECRET_KEY", "HW_SECRET_KEY"):
        monkeypatch.setenv(name, "very-secret")
    place = b.place(config_of(**checkpoints), replace(session_of(tmp_path), provider=provider))
    assert place == b.Place("my-bucket", "runs", endpoint, region, owner, 600, False)
    url = b.client(place).generate_presigned_url("put_object", Params={"Bucket": "my-bucket", "Key": "k"})
    host = endpoint.partition("//")[2] or "s3.eu-central-1.amazonaws.com"
    by_host = owner != "aws" or not endpoint
    assert f"//my-bucket.{host}/k?" in url if by_host else f"//{host}/my-bucket/k?" in url
    assert "very-secret" not in url and f"%2F{region}%2Fs3%2Faws4_request" in url
    assert {"aliyun": "ALIBABA", "tencent": "TENCENT", "huawei": "HW_", "aws": bucket_server.KEY_ID}[owner] in url


def test_an_address_lasts_as_long_as_the_session_and_a_week_at_most(bucket: Bucket, tmp_path: Path) -> None:
    job = job_of(tmp_path, bucket)
    for lasts_s, valid_s in ((7200, 10_800), (30 * 86400, 604_800)):
        given = b.grant(session_of(tmp_path, lasts_s), job)
        assert given is not None
        assert given["until"] == pytest.approx(time.time() + valid_s, abs=60)
        assert int(given["pointer"].partition("X-Amz-Expires=")[2].partition("&")[0]) == pytest.approx(valid_s, abs=60)


def test_what_is_missing_here_is_said_before_anything_is_rented(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    b.check(Config(), ["aliyun"], False)  # no bucket is named
    with pytest.raises(UsageError, match="a simulated cloud has no object store"):
        b.check(config_of(), ["aliyun"], True)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UsageError, match="no key for Tencent"):
        b.check(config_of(), ["tencent"], False)
    b.check(config_of(), ["local"], False)
    with pytest.raises(UsageError, match="is in one cloud, and aliyun, tencent may be taken"):
        b.check(config_of(), ["aliyun", "tencent"], False)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UsageError, match="no key for an S3 store: looked at AWS_ACCESS_KEY_ID") as caught:
        b.check(config_of(), ["local"], False)
    assert str(tmp_path / ".aws/credentials") in str(caught.value)
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    assert b.credentials(b.AMAZON).key_id == "a"
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(UsageError, match="boto3") as caught:
        b.check(config_of(), ["local"], False)
    assert caught.value.hint == "pip install 'orchestrate[bucket]'"


def test_a_store_that_does_not_answer_the_client_is_said_and_what_is_home_is_sent(
    bucket: Bucket, tmp_path: Path
) -> None:
    said: list[str] = []
    bucket.refused.add("GET")
    assert b.archives(session_of(tmp_path), job_of(tmp_path, bucket), 0, said.append) == []
    assert "s3://bucket/runs answers AccessDenied" in said[0] and bucket_server.SECRET not in said[0]
    bucket.refused.clear()
    assert b.archives(session_of(tmp_path), job_of(tmp_path, bucket), 0, said.append) == [] and len(said) == 1
    with pytest.raises(OrchestrateError, match="can't be reached"), b.answering(b.place_of(job_of(tmp_path, bucket))):  # type: ignore[arg-type]
        b.client(b.place_of(job_of(tmp_path, bucket, endpoint="http://127.0.0.1:1"))).head_bucket(Bucket="bucket")  # type: ignore[arg-type]


# ---- the end ------------------------------------------------------------------------------------------------------


def test_nothing_stays_in_the_bucket_and_what_does_is_named(bucket: Bucket, tmp_path: Path) -> None:
    record, said = Store(tmp_path / "home"), []
    session = record.open_session("s", "local", time.time() + 60)
    job = record.add_job(session, "0123456789abcdef", "c", ["outputs"], tmp_path / "results")
    where = b.Place(bucket_server.NAME, "runs", bucket.address, "any", b.AMAZON, 600, keep=True)

    def down(keep: bool = False) -> list[str]:
        job.results.mkdir(parents=True, exist_ok=True)
        (job.results / "run.json").write_text(json.dumps({"bucket": asdict(replace(where, keep=keep))}))
        record.update_job(job, state="succeeded", pulled=1)
        return b.remove(record, session, said.append)

    theirs = {"runs/s/1-0123456789ab/0/" + name: b"" for name in ("0.00.tar", "0.01.tar", "1.00.tar", "latest.json")}
    bucket.kept.update({**theirs, "runs/other": b""})
    assert down(keep=True) == []
    assert bucket.kept.keys() == {*theirs, "runs/other"} and "stay in s3://bucket/runs/s/1-0123456789ab" in said[-1]
    bucket.refused.add("DELETE")
    [left] = down()
    assert "may still be in s3://bucket/runs/s/1-0123456789ab/0" in left and "AccessDenied" in left
    bucket.refused.clear()
    assert down() == [] and list(bucket.kept) == ["runs/other"]
    assert down() == [] and len(said) == 1, "twice is once"
    assert [event["what"] for event in record.events(session)] == [left], "what is kept on purpose is no trouble"


def test_what_did_not_come_home_stays_in_the_bucket_and_is_named(bucket: Bucket, tmp_path: Path) -> None:
    """Where a lost job can't go on, its last checkpoint may be there and nowhere else."""
    record, said, left = Store(tmp_path / "home"), [], list[str]()
    session = record.open_session("s", "local", time.time() + 60)
    job = record.add_job(session, "0123456789abcdef", "c", ["outputs"], tmp_path / "results")
    where = b.Place(bucket_server.NAME, "runs", bucket.address, "any", b.AMAZON, 600, keep=False)
    latest = {"slot": 0, "sha256": "0" * 64, "size": 3, "piece": 3, "files": 1, "at": 100.0, "of": 9.0, "last": False}
    theirs = {"0.00.tar": b"abc", "latest.json": json.dumps({"latest": latest, "before": None}).encode()}
    theirs = {f"runs/s/1-0123456789ab/0/{name}": content for name, content in theirs.items()}

    def end(came_home_at: float, discard: bool = False, **state: Any) -> bool:
        """Whether it is there still."""
        bucket.kept.clear()
        bucket.kept.update(theirs)
        record.update_job(job, **state)
        job.results.mkdir(parents=True, exist_ok=True)
        run = {"bucket": asdict(where), "home": {"at": came_home_at}}
        (job.results / "run.json").write_text(json.dumps(run))
        left.extend(b.remove(record, session, said.append, discard))
        assert len(bucket.kept) in (0, 2)
        return bool(bucket.kept)

    assert end(50.0, state="lost", pulled=0)
    assert said == ["the last checkpoints of job 1 did not come home: they stay in s3://bucket/runs/s/1-0123456789ab"]
    assert [event["what"] for event in record.events(session)] == said
    assert end(50.0, state="lost", pulled=1) and not end(150.0, state="lost", pulled=0)
    assert not end(50.0, state="lost", pulled=0, discard=True) and not end(50.0, state="succeeded", pulled=1)
    assert left == []
    bucket.refused.add("GET")
    assert end(50.0, state="lost", pulled=0) and "may still be in" in left[-1], "where it can't be asked, nothing goes"


def test_a_store_that_cannot_be_reached_is_asked_once_and_all_that_is_there_is_named(
    bucket: Bucket, tmp_path: Path
) -> None:
    record, said = Store(tmp_path / "home"), []
    session = record.open_session("s", "local", time.time() + 60)
    places = [bucket.address, bucket.address, "no address"]
    for number, endpoint in enumerate(places, start=1):
        job = record.add_job(session, f"{number:016}", "c", ["outputs"], tmp_path / "results")
        record.update_job(job, state="succeeded", pulled=1)
        where = b.Place(bucket_server.NAME, "runs", endpoint, "any", b.AMAZON, 600, keep=False)
        job.results.mkdir(parents=True)
        (job.results / "run.json").write_text(json.dumps({"bucket": asdict(where)}))
    bucket.refused.add("GET")
    left = b.remove(record, session, said.append)
    assert len(bucket.asked) == 1 and len(left) == 3 and said == []
    assert all(
        f"job {number} may still be in s3://bucket/runs/s/{number}-0" in left[number - 1] for number in (1, 2, 3)
    )


def test_of_a_job_that_has_ended_no_missing_checkpoint_is_said(tmp_path: Path) -> None:
    """Its addresses are taken away at its end, and an upload may just be beginning."""
    said: list[str] = []
    keeper = there.Keeper(str(tmp_path), time.time, said.append)
    assert not keeper.keep(time.monotonic() + 9, last=False) and "its addresses are gone" in said.pop()
    keeper.over, keeper.complaint = True, ""
    assert not keeper.keep(time.monotonic() + 9, last=False) and said == []
