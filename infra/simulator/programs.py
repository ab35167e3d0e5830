"""The programs of a simulated machine that a real one has and this computer has not, or not for this.

In the folder of each: `bin`, which is in the PATH of all that runs there, and `sbin` for what root runs alone.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from infra import hosting
from infra.hosting import Files
from infra.provider import Offer

SMI = """\
#!/bin/sh
# Looks like one, and drives nothing: this machine is simulated.
count={count} name={name} memory={memory} units=" MiB" percent=" %" header=yes query=
for word in "$@"; do
    case $word in
    --query-gpu=*) query=${{word#*=}} ;;
    *nounits*) units= percent= ;;
    esac
    case $word in *noheader*) header= ;; esac
done
if [ "$1" = -L ]; then
    i=0; while [ $i -lt $count ]; do echo "GPU $i: $name (UUID: GPU-simulated-$i)"; i=$((i + 1)); done; exit 0
fi
if [ -z "$query" ]; then
    echo "NVIDIA-SMI 580.65.06   Driver Version: 580.65.06   CUDA Version: 13.0   (simulated)"
    i=0; while [ $i -lt $count ]; do echo "| $i  $name  0MiB / ${{memory}}MiB  0% |"; i=$((i + 1)); done; exit 0
fi
[ -n "$header" ] && echo "$query" | sed 's/,/, /g'
i=0
while [ $i -lt $count ]; do
    line=
    for one in $(echo "$query" | tr ',' ' '); do
        case $one in
        name|gpu_name) value=$name ;;
        count) value=$count ;;
        index) value=$i ;;
        uuid|gpu_uuid) value="GPU-simulated-$i" ;;
        memory.total|memory.free) value="$memory$units" ;;
        memory.used) value="0$units" ;;
        utilization.*) value="0$percent" ;;
        driver_version) value=580.65.06 ;;
        temperature.gpu) value=30 ;;
        compute_cap) value=8.6 ;;
        *) value="[N/A]" ;;
        esac
        line="$line${{line:+, }}$value"
    done
    echo "$line"
    i=$((i + 1))
done
"""

SUDO = """\
#!/bin/sh
# Nobody is root on a simulated machine: what root may do with it alone, its user does.
case "$1 $2" in
"-n /usr/local/sbin/"*)
    program={sbin}/${{2##*/}}
    shift 2
    export PATH={sbin}:"$PATH"
    exec "$program" "$@"
    ;;
esac
exec {sudo} "$@"
"""

SYSTEMCTL = """\
#!/bin/sh
# A simulated machine's SSH server reads its host key for each connection: there is nothing to reload.
[ "$*" = "reload ssh" ]
"""

KEYGEN = """\
#!{python}
# For a computer without OpenSSH: -t makes a key, -y prints the public line of one.
import os, sys
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
path = sys.argv[sys.argv.index("-f") + 1]
if "-t" in sys.argv:
    pem = s.Encoding.PEM, s.PrivateFormat.OpenSSH, s.NoEncryption()
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(Ed25519PrivateKey.generate().private_bytes(*pem))
else:
    with open(path, "rb") as file:
        public = s.load_ssh_private_key(file.read(), None).public_key()
    print(public.public_bytes(s.Encoding.OpenSSH, s.PublicFormat.OpenSSH).decode())
"""


def put(files: Files, size: Offer | None, rekey: str) -> None:
    """Write those that a machine needs: of its GPUs, and for the script `rekey` where it has one."""
    programs = files.folder / "bin"
    programs.mkdir(mode=0o700)
    if size and size.gpus:
        memory = int(size.gpu_memory_gib * 1024) or 16384
        text = SMI.format(count=size.gpus, name=shlex.quote(f"NVIDIA {size.gpu}"), memory=memory)
        hosting.write_new(programs / "nvidia-smi", text, mode=0o700)
    if rekey:
        _put_rekey(files, programs, rekey)


def _put_rekey(files: Files, programs: Path, script: str) -> None:
    """The script, with this machine's host key for a real one's, and what it is run by and runs."""
    from infra.cloudinit import HOST_KEY, REKEY_PATH

    roots = files.folder / "sbin"
    roots.mkdir(mode=0o700)
    texts = {
        roots / Path(REKEY_PATH).name: script.replace(HOST_KEY, shlex.quote(str(files.host_key))),
        roots / "systemctl": SYSTEMCTL,
        programs / "sudo": SUDO.format(sbin=shlex.quote(str(roots)), sudo=shutil.which("sudo") or "/usr/bin/sudo"),
    }
    if not shutil.which("ssh-keygen"):
        texts[roots / "ssh-keygen"] = KEYGEN.format(python=sys.executable)
    for path, text in texts.items():
        hosting.write_new(path, text, mode=0o700)
