"""Programs of the system that tests need: found, or installed where we are root on Debian or Ubuntu."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"


def find(program: str, package: str) -> str | None:
    """The program's path; None where it isn't here and can't be installed. Two at once wait for each other."""
    found = shutil.which(program, path=PATH)
    if found is None and can_install():
        apt_get("update", "-qq")
        apt_get("install", "-y", "-qq", package)
        found = shutil.which(program, path=PATH)
    return found


def unpack(package: str, folder: Path) -> str:
    """A PATH with what is in a package, which isn't installed: its daemon would be started."""
    if can_install() and apt_get("download", "-qq", package, cwd=folder) and (files := list(folder.glob("*.deb"))):
        subprocess.run(["dpkg-deb", "-x", files[0], folder], capture_output=True, check=False)
    return f"{folder}/usr/bin:{folder}/usr/sbin:{PATH}"


def can_install() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def apt_get(*words: str, cwd: Path | None = None) -> bool:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    argv = ["apt-get", "-o", "DPkg::Lock::Timeout=200", *words]
    return not subprocess.run(argv, env=environment, cwd=cwd, capture_output=True, timeout=280, check=False).returncode
