"""A cloud on your own computer: the production programs, the real engine, real SSH machines, and no bill.

One plugin of ours stands in for those of Alibaba, Tencent and Huawei. What the cloud has is in one SQLite file of its
own, outside the engine's state, so that a test can compare the two.

    kinds.py     the types of resources, and what a cloud tells of each
    store.py     the file: resources, calls, faults, settings
    faults.py    what goes wrong when it is told to
    rules.py     what a cloud refuses, in its own words
    account.py   what its owner has and says: money, quotas, prices, stock; readings of the meter
    cloud.py     Simulator: make, change, end, list, expire, preempt, reboot
    machines.py  a machine: an SSH server, its attendant, a GPU's tool that only looks like one
    attendant.py beside each machine: its metadata address, and the cloud's clock
    answers.py   the data sources
    plugin.py    the engine's conversation with a provider
    calls.py     what the clouds' own APIs are asked: prices, stock, lists by tag, deletes
    alibaba.py tencent.py huawei.py   the same in each one's wire form
    service.py   and over HTTP on loopback, for the clouds' own SDKs
    world.py     how it is reached in the real one's place

Nobody has compared it with the clouds themselves: codes marked "unconfirmed" are from memory.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

HOME = "ORCHESTRATE_SIMULATOR"  # names the folder of the cloud
PLUGINS = ("alicloud", "tencentcloud", "huaweicloud")

# `-c` puts the current folder first on the path: it is the engine's, and may hold anything.
LAUNCHER = """\
#!/bin/sh
exec {python} -c 'import sys; sys.path[0] = sys.argv.pop(1); from infra.simulator.plugin import main; main()' \
{root} {name} "$@"
"""


def folder() -> Path:
    """Where the cloud is: $ORCHESTRATE_SIMULATOR, else in the user's data folder."""
    if chosen := os.environ.get(HOME):
        return Path(chosen).absolute()
    import platformdirs  # the plugin, which is told its folder, starts without it

    return platformdirs.user_data_path("orchestrate") / "simulator"


def plugins_folder(home: Path | None = None) -> Path:
    """A folder of programs that pose as the clouds' plugins, for `Stack(plugins=...)`; made if need be."""
    home = home or folder()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = home / "plugins"
    place.mkdir(mode=0o700, exist_ok=True)
    root = Path(__file__).parent.parent.parent
    for name in PLUGINS:
        text = LAUNCHER.format(python=shlex.quote(sys.executable), root=shlex.quote(str(root)), name=name)
        program = place / f"pulumi-resource-{name}"
        if not program.exists() or program.read_text() != text:
            aside = program.with_name(f".{name}.{os.getpid()}")
            aside.write_text(text)
            aside.chmod(0o700)
            os.replace(aside, program)
    return place
