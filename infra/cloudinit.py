"""What a rented machine does at its first boot: keys, mirrors, the dead man's guard, the GPU driver.

The one secret in it is the host key made at home, by which the machine is known before it is met. Whoever may read
user-data can read that key, so the first connection replaces it (docs: cloud-init's modules "SSH", "Users and Groups",
"Apt Configure", "Write Files", "Runcmd").
"""

from __future__ import annotations

import base64
from typing import Any

import yaml

from infra.errors import BadRequest
from infra.provider import MachineSpec, Mirrors

USER = "orchestrate"
NO_MIRRORS = Mirrors()
GUARD_PATH = "/usr/local/sbin/orchestrate-guard"
LIMIT = 16 * 1024  # bytes in base64: the least that any of the three clouds takes
DRIVER_DEADLINE_S = 45 * 60  # while it installs, the machine isn't idle; installers take 5 to 25 minutes

GUARD = """\
#!/bin/sh
# Powers this machine off at its expiry, and when nobody has used it for a while. The cloud has its own deadline too.
expiry=@EXPIRY@ idle=@IDLE@ every=30 moved=@MOVED@

in_use() {
    pgrep -f '[s]upervisor\\.py' >/dev/null && return 0       # a job, queued or running
    pgrep -f '[o]rchestrate-driver' >/dev/null && [ "$up" -lt @DRIVER@ ] && return 0
    [ -n "$(ss -Htn state established '( sport = :@PORT@ )' 2>/dev/null)" ] && return 0
    for use in $(timeout 20 nvidia-smi --query-gpu=utilization.gpu --format=csv,noheader,nounits 2>/dev/null); do
        [ "$use" -gt 5 ] 2>/dev/null && return 0
    done
    return 1
}

off() {
    logger -t orchestrate-guard "powering off: $1" 2>/dev/null
    sync
    systemctl poweroff || poweroff || shutdown -h now
    exit 0
}

quiet=0 up=0
while :; do
    [ -e "$moved" ] && until=$(cat "$moved") && [ "$until" -gt 0 ] 2>/dev/null && expiry=$until
    [ "$(date +%s)" -ge "$expiry" ] && off expired
    if in_use; then quiet=0; else quiet=$((quiet + every)); fi
    [ "$idle" -gt 0 ] && [ "$quiet" -ge "$idle" ] && off idle
    sleep "$every"
    up=$((up + every))
done
"""

MOVED = "/etc/orchestrate-expiry"  # another end than the guard was made with: Unix seconds
MOVE_GUARD = """\
[ -e {guard} ] || exit 0  # a machine without a guard
grep -q {moved} {guard} || {{ echo "its guard is of an earlier version, and can't be told another end" >&2; exit 1; }}
echo {expiry} | sudo -n tee {moved}.new >/dev/null && sudo -n mv {moved}.new {moved}
"""

GUARD_UNIT = """\
[Unit]
Description=Powers the machine off at its expiry and when it is idle

[Service]
ExecStart=/usr/local/sbin/orchestrate-guard
Restart=always
RestartSec=5

[Install]
WantedBy=multi-user.target
"""

# What an SSH session has started gets SIGHUP beside SIGTERM when the machine goes down, says logind, and most trainers
# die of that half-way through their last checkpoint. The drop-in holds for every session-*.scope: see systemd.unit(5).
SESSIONS = """\
[Scope]
SendSIGHUP=no
TimeoutStopSec=120
"""

# With systemd's own default for it, which some images have, a job would end with the session that has started it.
LOGINS = """\
[Login]
KillUserProcesses=no
"""

# What is begun again by the user's own systemd may need the network, of which that one knows nothing.
USERS = """\
[Unit]
Wants=network-online.target
After=network-online.target
"""

HOST_KEY = "/etc/ssh/ssh_host_ed25519_key"
REKEY_PATH = "/usr/local/sbin/orchestrate-rekey"
REKEY = f"""\
#!/bin/sh
# Replaces the host key, which came with the user-data: `new` makes one beside it and prints its public line, `apply`
# has sshd show it. Both may be run again.
set -e
umask 077
key={HOST_KEY}
case $1 in
new)
    ssh-keygen -y -P '' -f "$key.new" 2>/dev/null && exit
    rm -f "$key.new" "$key.new.pub"
    ssh-keygen -q -t ed25519 -N '' -C '' -f "$key.new"
    sync "$key.new"
    ssh-keygen -y -P '' -f "$key.new"
    ;;
apply)
    if [ -e "$key.new" ]; then
        ssh-keygen -y -P '' -f "$key.new" >"$key.pub"
        mv -f "$key.new" "$key"
        rm -f "$key.new.pub"
    fi
    systemctl reload ssh || systemctl restart ssh
    ;;
*) exit 2 ;;
esac
"""

SSHD = """\
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin no
"""


def user_data(spec: MachineSpec, mirrors: Mirrors = NO_MIRRORS, driver: str = "") -> str:
    """The #cloud-config of one machine. `driver` is a shell script that installs the GPU's. Raises BadRequest."""
    text = "#cloud-config\n" + yaml.dump(document(spec, mirrors, driver), Dumper=Readable, sort_keys=False, width=1000)
    size = len(base64.b64encode(text.encode()))
    if size > LIMIT:
        raise BadRequest(f"the machine's user-data has {size} bytes, and clouds take {LIMIT}", "use a shorter key")
    return text


def document(spec: MachineSpec, mirrors: Mirrors, driver: str) -> dict[str, Any]:
    """The same as values."""
    content: dict[str, Any] = {
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": spec.host_private_key, "ed25519_public": spec.host_public_key.strip()},
        "ssh_pwauth": False,
        "disable_root": True,
        "users": [
            {
                "name": USER,
                "shell": "/bin/bash",
                "lock_passwd": True,
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "ssh_authorized_keys": [spec.client_public_key.strip()],
            }
        ],
        "write_files": files(spec, mirrors, driver),
        "runcmd": commands(spec, driver),
    }
    if mirrors.apt:
        archive = [{"arches": ["default"], "search": list(mirrors.apt)}]
        content["apt"] = {"primary": archive, "security": archive}
    return content


def files(spec: MachineSpec, mirrors: Mirrors, driver: str) -> list[dict[str, str]]:
    """The files that are written, each with its mode."""
    guard = GUARD
    values = {"EXPIRY": int(spec.expires_at), "MOVED": MOVED, "IDLE": int(spec.idle_s), "PORT": spec.ssh_port}
    for name, value in {**values, "DRIVER": DRIVER_DEADLINE_S}.items():
        guard = guard.replace(f"@{name}@", str(value))
    written = [
        (GUARD_PATH, "0755", guard),
        ("/etc/systemd/system/orchestrate-guard.service", "0644", GUARD_UNIT),
        ("/etc/systemd/system/session-.scope.d/10-orchestrate.conf", "0644", SESSIONS),
        ("/etc/systemd/logind.conf.d/99-orchestrate.conf", "0644", LOGINS),
        ("/etc/systemd/system/user@.service.d/10-orchestrate.conf", "0644", USERS),
        ("/etc/ssh/sshd_config.d/10-orchestrate.conf", "0644", f"Port {spec.ssh_port}\n{SSHD}"),
        (REKEY_PATH, "0755", REKEY),
    ]
    if mirrors.pypi:
        written.append(("/etc/pip.conf", "0644", f"[global]\nindex-url = {mirrors.pypi}\n"))
    if driver:
        written.append(("/usr/local/sbin/orchestrate-driver", "0755", driver))
    return [{"path": path, "permissions": mode, "content": content} for path, mode, content in written]


def commands(spec: MachineSpec, driver: str) -> list[list[str]]:
    """What is run at the end of the first boot: the guard first, since the driver's script may reboot the machine."""
    run = [["systemctl", "daemon-reload"], ["systemctl", "enable", "--now", "orchestrate-guard.service"]]
    run.append(["systemctl", "restart", "ssh"])  # the settings above: written after sshd has started
    run.append(["loginctl", "enable-linger", USER])  # its systemd begins recovered jobs again after a reboot
    if driver:
        log = "/var/log/orchestrate-driver.log"
        run.append(["sh", "-c", f"setsid /usr/local/sbin/orchestrate-driver </dev/null >{log} 2>&1 &"])
    return run


def move_guard(expires_at: float) -> list[str]:
    """The command that, run on a machine, moves the end of its guard."""
    return ["sh", "-c", MOVE_GUARD.format(guard=GUARD_PATH, moved=MOVED, expiry=int(expires_at))]


def caveats(spec: MachineSpec) -> list[str]:
    """What the guard can't do: a machine that is off is billed all the same, wholly or in part, on every cloud."""
    if not spec.idle_s:
        return []
    return [
        f"unused for {spec.idle_s / 60:g} minutes, the machine powers itself off, but goes on costing, its disks at "
        "least, until it is taken down or the cloud ends it"
    ]


class Readable(yaml.SafeDumper):
    """Texts of several lines as blocks, so that a person can read what a machine was told."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def as_block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """A string; with line breaks in it, as a block."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


Readable.add_representer(str, as_block)
