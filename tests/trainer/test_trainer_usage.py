"""What a run takes of its machine, by a nvidia-smi that the test makes, and what the machine costs."""

import json
import os
import time

import pytest

from trainer.usage import PRICE, Meter, Use, record_price


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Make a nvidia-smi of these lines of shell; what it is asked is in the file `asked`."""

    def make(*lines):
        program = tmp_path / "nvidia-smi"
        program.write_text("\n".join(["#!/bin/sh", f'echo "$@" >> {tmp_path}/asked', *lines]) + "\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        return tmp_path / "asked"

    return make


def looks(asked):
    return len(asked.read_text().splitlines()) if asked.exists() else 0


def test_gpus_are_looked_at_again_and_again_and_told_once(smi, eventually):
    asked = smi('[ -e "$0.busy" ] && echo "100, 4096" || { touch "$0.busy"; echo "50, 2048"; }')
    meter = Meter("GPU-1-2", every_s=0.02)
    eventually(lambda: looks(asked) >= 3, 60)  # so two have been noted
    used = meter.take()
    assert 0.5 < used.gpu_use < 1 and used.gpu_memory_gib == 4
    assert "--id=GPU-1-2 --query-gpu=utilization.gpu,memory.used" in asked.read_text()
    seen = looks(asked)
    eventually(lambda: looks(asked) >= seen + 2, 60)
    assert meter.take().gpu_use == 1  # the first look was of the time before
    meter.close()
    eventually(lambda: not meter.watching, 60)


@pytest.mark.parametrize("line", ["exit 9", "echo '[N/A], [N/A]'", "echo"])
def test_a_driver_that_says_nothing_is_not_asked_again(smi, eventually, line):
    asked = smi(line)
    meter = Meter("0", every_s=0.02)
    eventually(lambda: looks(asked) == 1, 60)
    eventually(lambda: not meter.watching, 60)
    used = meter.take()
    assert used.gpu_use is used.gpu_memory_gib is None and looks(asked) == 1


def test_without_a_gpu_the_cpu_and_the_memory_are_told():
    meter = Meter()
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    used = meter.take()
    assert used.cpu_cores > 0 and 0.01 < used.memory_gib < 1000
    assert Use(used.cpu_cores, used.memory_gib) == used


def test_the_price_is_what_the_environment_tells(tmp_path, monkeypatch):
    record_price(tmp_path)
    assert not (tmp_path / PRICE).exists()
    monkeypatch.setenv("ORCHESTRATE_CURRENCY", "CNY")
    monkeypatch.setenv("ORCHESTRATE_PRICE_PER_HOUR", "much")
    record_price(tmp_path)
    assert not (tmp_path / PRICE).exists()
    monkeypatch.setenv("ORCHESTRATE_PRICE_PER_HOUR", "12.3")
    record_price(tmp_path)
    assert json.loads((tmp_path / PRICE).read_text()) == {"per_hour": 12.3, "currency": "CNY", "machine": ""}
