"""Programs of the system that tests need: found, or installed where we are root on Debian or Ubuntu."""

from __future__ import annotations

import os
import shutil
import subprocess

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"


def find(program: str, package: str) -> str | None:
    """The program's path; None where it isn't here and can't be installed. Two at once wait for each other."""
    found = shutil.which(program, path=PATH)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update", "-qq"], ["install", "-y", "-qq", package]):
            argv = ["apt-get", "-o", "DPkg::Lock::Timeout=200", *words]
            subprocess.run(argv, env=environment, capture_output=True, timeout=280, check=False)
        found = shutil.which(program, path=PATH)
    return found
