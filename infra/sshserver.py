"""The SSH server of one machine on this computer: `python -m infra.sshserver FOLDER`. See `hosting` for the folder.

It listens on 127.0.0.1 and ends with everything that it started: when it is told to (SIGTERM), when the machine
expires, or when its folder is gone. Connections are answered by this program itself, or each by a real sshd in its
inetd mode (`sshd -i`), so that both kinds are found, bounded and ended the same way. Either way the host key is
read for each connection, so that another in its place is shown from then on.
"""

from __future__ import annotations

import base64
import errno
import json
import logging
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from infra import processes
from infra.hosting import Files, Listening, Settings, write_new
from infra.lean import paramiko
from infra.sshconnection import Connection
from infra.sshsession import Household

log = logging.getLogger("machine")

LOOK_EVERY_MS = 1000  # at the wall clock, which sees that a laptop was asleep
LOGIN_WITHIN_S = 60
SFTP_SERVERS = (
    "/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/libexec/sftp-server",
    "/usr/lib/ssh/sftp-server", "/usr/lib/sftp-server",
)  # fmt: skip
CANT_START = 1

Answer = Callable[[socket.socket], None]


class CannotStart(Exception):
    """The server can't do its work; says why."""


def main(arguments: list[str]) -> int:
    """Serve until the end. Returns the exit status: EADDRINUSE (98 on Linux) where the port is taken."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    logging.getLogger("paramiko").setLevel(logging.ERROR)
    files = Files(Path(arguments[0]))
    try:
        settings = Settings(**json.loads(files.settings.read_text()))
        house = household(files, settings)
        wake = prepare_process()
        answer = real_sshd(files, settings, house) if settings.sshd else own_server(files, house)
        with listen(settings.port) as listener:
            announce(files, listener)
            reason = serve(listener, wake, answer, house, lambda: over(files, settings))
    except OSError as error:
        log.error("%s", error)
        return errno.EADDRINUSE if error.errno == errno.EADDRINUSE else CANT_START
    except (CannotStart, ValueError, TypeError, paramiko.SSHException) as error:
        log.error("%s", error)
        return CANT_START
    log.info("%s: ending every process", reason)
    left = processes.end(settings.id)
    log.info("ended%s", "".join(f"; pid {process.pid} is left" for process in left))
    return 0


def household(files: Files, settings: Settings) -> Household:
    """What all connections share."""
    kind, key = files.authorized_keys.read_text().split()[:2]
    return Household(
        home=files.home,
        user=settings.user,
        key=paramiko.PKey.from_type_string(kind, base64.b64decode(key)),
        environment=settings.environment,
    )


def prepare_process() -> int:
    """Set up signals, umask and adoption. Returns a descriptor that is readable when a signal came."""
    processes.become_subreaper()
    os.umask(0o022)  # of what runs here; the folder above lets nobody else in
    wake, write = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    # Handlers, since ignored signals stay ignored in all that is started: whoever started us may have ignored them.
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    return wake


def listen(port: int) -> socket.socket:
    """Listen on 127.0.0.1 only. Raises OSError."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)
    return listener


def announce(files: Files, listener: socket.socket) -> None:
    """Write where we listen, whole or not at all."""
    port: int = listener.getsockname()[1]
    aside = files.listening.with_suffix(".new")
    write_new(aside, json.dumps(asdict(Listening(port, os.getpid(), processes.started(os.getpid())))))
    aside.rename(files.listening)
    log.info("listening on 127.0.0.1 port %d", port)


def over(files: Files, settings: Settings) -> str:
    """Why the machine has to end now; empty if it doesn't."""
    if time.time() >= expiry(files, settings):
        return "expired"
    return "" if files.listening.exists() else "its folder is gone"


def expiry(files: Files, settings: Settings) -> float:
    """When the machine ends: as its file says now, since that may be moved; unreadable, as it said at the start."""
    try:
        return float(json.loads(files.settings.read_text())["expires_at"])
    except (OSError, ValueError, KeyError, TypeError):
        return settings.expires_at


def serve(listener: socket.socket, wake: int, answer: Answer, house: Household, over: Callable[[], str]) -> str:
    """Answer connections until it is over. Returns why it is."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(wake, select.POLLIN)
    listener.setblocking(False)
    while True:
        if reason := over():
            return reason
        for descriptor, _ in poll.poll(LOOK_EVERY_MS):
            if descriptor == wake:
                if signal.SIGTERM in os.read(wake, 4096):
                    return "told to end"
            else:
                try:
                    connection, _address = listener.accept()
                except OSError:  # it was gone again, or there are no descriptors left
                    time.sleep(0.01)
                    continue
                connection.setblocking(True)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                answer(connection)
        house.reap_orphans()


def own_server(files: Files, house: Household) -> Answer:
    """Connections are answered by threads of this process."""
    paramiko.PKey.from_path(files.host_key)  # it ends here where it has none

    def answer(accepted: socket.socket) -> None:
        try:
            host_key = paramiko.PKey.from_path(files.host_key)
        except (OSError, ValueError, paramiko.SSHException) as error:
            log.error("no connection without a host key: %s", error)
            accepted.close()
            return
        connection = Connection(accepted, house, host_key)
        connection.open_for_business()
        # One that never logs in doesn't keep its thread.
        limit = threading.Timer(LOGIN_WITHIN_S, connection.close_unless_logged_in)
        limit.daemon = True
        limit.start()

    return answer


def real_sshd(files: Files, settings: Settings, house: Household) -> Answer:
    """Each connection is answered by an sshd of its own. Raises CannotStart."""
    config = write_sshd_config(files, settings)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(
            mode=0o755, exist_ok=True
        )  # sshd insists on it as root; a boot script makes it elsewhere
    check = subprocess.run([settings.sshd, "-t", "-f", str(config)], capture_output=True, text=True, check=False)
    if check.returncode != 0:
        raise CannotStart(f"{settings.sshd} refuses its settings: {check.stderr.strip()}")
    # The shell stays above it: sshd overwrites its own environment, so the mark is seen in its parent's.
    argv: list[str | bytes] = ["/bin/sh", "-c", '"$@"; exit $?', "sshd", settings.sshd, "-i", "-e", "-f", str(config)]

    def answer(connection: socket.socket) -> None:
        with connection:
            stdio = (connection.fileno(), connection.fileno(), None)
            child = house.spawn(argv, house.environment, stdio)
        threading.Thread(target=house.wait, args=(child,), daemon=True).start()

    return answer


def write_sshd_config(files: Files, settings: Settings) -> Path:
    """The settings of a real sshd, and the program that every session of it runs."""
    sftp = next((path for path in SFTP_SERVERS if os.access(path, os.X_OK)), "")
    if not sftp:
        raise CannotStart(f"there is no sftp-server for {settings.sshd}: looked at {', '.join(SFTP_SERVERS)}")
    config, command = files.folder / "sshd_config", files.folder / "session"
    exports = [f"export {name}={shlex.quote(value)}" for name, value in settings.environment.items() if name != "LANG"]
    # sshd begins in the home folder of /etc/passwd, with little more than its PATH: this puts both right.
    lines = ["#!/bin/sh", *exports, 'export LANG="${LANG:-C.UTF-8}"', 'cd "$HOME" || exit 255', SESSION]
    write_new(command, "\n".join(lines), mode=0o700)
    marker = settings.environment[processes.MARKER]
    write_new(config, SSHD_CONFIG.format(
        host_key=_quoted(files.host_key), authorized_keys=_quoted(files.authorized_keys).replace("%", "%%"),
        user=settings.user, sftp=sftp, command=shlex.quote(str(command)), home=_quoted(files.home),
        marker=f"{processes.MARKER}={marker}",
    ))  # fmt: skip
    return config


def _quoted(path: Path) -> str:
    return f'"{path}"'


SESSION = """\
if [ -z "$SSH_ORIGINAL_COMMAND" ]; then exec "$SHELL"; fi
command=$SSH_ORIGINAL_COMMAND
unset SSH_ORIGINAL_COMMAND
exec "$SHELL" -c "$command"
"""

SSHD_CONFIG = """\
HostKey {host_key}
AuthorizedKeysFile {authorized_keys}
AllowUsers {user}
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UsePAM no
# The folder is ours, 0700; those above it may be anything.
StrictModes no
PidFile none
UseDNS no
PrintMotd no
PrintLastLog no
PermitUserRC no
PermitUserEnvironment no
X11Forwarding no
AllowAgentForwarding no
AllowStreamLocalForwarding no
AllowTcpForwarding local
PermitOpen 127.0.0.1:* localhost:*
PermitTunnel no
MaxSessions 1000
AcceptEnv LANG LC_*
SetEnv HOME={home} {marker}
Subsystem sftp {sftp}
ForceCommand {command}
"""


if __name__ == "__main__":
    status = main(sys.argv[1:])
    logging.shutdown()
    os._exit(status)  # paramiko's threads would be waited for
