"""A checkpoint's way from a lost machine to the next one through a bucket, while nothing of it comes home."""

from __future__ import annotations

import io
import json
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import Cli
from tests.e2e.test_recover import COUNT, results, steps
from tests.infra import bucket_server
from tests.infra.bucket_server import Bucket

if TYPE_CHECKING:
    from infra.simulator.cloud import Simulator

FILE = """
run: python count.py
recover: true
tools: []
pull_every: 1d
envs: {{SLOW: 0.2}}
checkpoints: {{bucket: s3://bucket/runs, endpoint: "{address}", every: 1s}}
"""


def step_there(bucket: Bucket) -> int:
    """The step that the bucket's latest checkpoint has; 0 where there is none."""
    kept = dict(bucket.kept)
    said = [json.loads(data) for key, data in kept.items() if key.endswith("latest.json")]
    if not said:
        return 0
    [archive] = [data for key, data in kept.items() if key.endswith(f"/{said[0]['latest']['slot']}.00.tar")]
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        found = members.extractfile("outputs/state") if "outputs/state" in members.getnames() else None
        return int(found.read()) if found else 0


def test_a_job_goes_on_from_the_bucket_and_its_checkpoint_never_came_home(
    cli: Cli, cloud: Simulator, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", bucket_server.KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", bucket_server.SECRET)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with bucket_server.running() as bucket:
        cli.write("count.py", COUNT)
        cli.write("orchestrate.yaml", FILE.format(address=bucket.address))
        cli("up", "s", "--provider", "aliyun", "--gpu", "--simulate", "--yes")
        process = cli.start("run")
        eventually(lambda: process.poll() is not None or step_there(bucket) >= 3, deadline_s=120)
        first = cloud.machines()[0]
        cloud.delete("alicloud", first.id)
        at_home = [path.name for path in (results(cli)).rglob("*") if "state" in path.name]
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err.decode()
        assert b"the machine fetches it" in err and at_home == []
        seen = steps((results(cli) / "log.txt").read_text(errors="replace").replace("\0", ""))
        assert seen[-1] == 20 and sorted(set(seen)) == list(range(1, 21))
        assert seen.count(1) == 1, "it went on, and did not begin again"
        moved = [(how, who.split("/")[0]) for how, key, who in bucket.asked if key.endswith(".tar")]
        assert {who for _, who in moved} == {"Python-urllib"} and ("GET", "Python-urllib") in moved
        text = json.dumps([path.read_text(errors="replace") for path in (results(cli)).glob("*.*")])
        assert "X-Amz" not in text + err.decode() and bucket_server.SECRET not in text + err.decode()
        bucket.refused.add("DELETE")
        down = cli("down", code=4).err
        assert "no machine of 's' is left, but the checkpoints of job 1 may still be in s3://bucket/runs/s/1-" in down
        assert cloud.inventory() == [] and "nothing is left" not in down
        assert [one["state"] for one in cli("status", "--json").json] == ["closing"]
        bucket.refused.clear()
        cli("down")
        assert bucket.kept == {} and bucket.count("DELETE") >= 3
    assert cloud.inventory() == []
