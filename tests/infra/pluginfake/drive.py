"""One act on a stack, as a process that a test can signal or kill: drive.py up|destroy FOLDER CLOUD PLUGINS.

The passphrase and the user-data come in the environment. Lines told go to stdout; the last is how it ended.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from infra import deployment, engine
from infra.stack import Stack

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored


def say(line: str) -> None:
    print(line, flush=True)


def stack_in(folder: Path, cloud: Path, plugins: Path, passphrase: str, **more: str) -> Stack:
    """The stack of the tests."""
    found = engine.find()
    assert found is not None
    environment = {"FAKE_CLOUD": str(cloud.absolute()), "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "canary-key-secret", **more}
    return Stack(
        folder, "orchestrate", "test", found, passphrase, {"alicloud:region": "cn-hangzhou"}, environment, plugins
    )


def program() -> None:
    """A network, a switch, a security group and a machine, as a cloud's own program makes them."""
    import pulumi
    import pulumi_alicloud as alicloud

    user_data = os.environ.get("TEST_USER_DATA", "#cloud-config canary-user-data")
    net = alicloud.vpc.Network("net", cidr_block="10.0.0.0/16")
    switch = alicloud.vpc.Switch("switch", vpc_id=net.id, cidr_block="10.0.0.0/24", zone_id="cn-hangzhou-j")
    group = alicloud.ecs.SecurityGroup("group", vpc_id=net.id)
    vm = alicloud.ecs.Instance(
        "vm", instance_type="ecs.gn7i-c8g1.2xlarge", image_id="ubuntu", vswitch_id=switch.id,
        security_groups=[group.id], user_data=pulumi.Output.secret(user_data),
        opts=pulumi.ResourceOptions(additional_secret_outputs=["user_data"]),
    )  # fmt: skip
    pulumi.export("host", vm.public_ip)
    pulumi.export("id", vm.id)
    pulumi.export("token", pulumi.Output.secret("canary-output"))


def main() -> None:
    act, folder, cloud, plugins = sys.argv[1], *map(Path, sys.argv[2:5])
    stack = stack_in(folder, cloud, plugins, os.environ.pop("TEST_PASSPHRASE"))
    try:
        if act == "up":
            say(f"ended: {sorted(deployment.up(stack, program, say))}")
        else:
            deployment.destroy(stack, say)
            say("ended: destroyed")
    except KeyboardInterrupt:
        say("ended: KeyboardInterrupt")
        sys.exit(130)
    except Exception as problem:
        say(f"ended: {type(problem).__name__}: {problem}")
        sys.exit(1)


if __name__ == "__main__":
    main()
