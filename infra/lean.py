"""paramiko, in half the time.

paramiko imports invoke for `Match exec` lines of an ssh_config, which nothing here reads, and invoke imports asyncio,
unittest and a YAML parser of its own: 80 ms of the 180 that every command would spend on it. paramiko does without
invoke where it isn't installed, so it is told that. Its own version, which it shows to servers, it reads from its
package's metadata, with the standard library's parser of mail: 15 ms more. It is told one.
"""

import sys
from types import SimpleNamespace
from typing import Any

MODULES: dict[str, Any] = sys.modules
told: dict[str, Any] = {"invoke": None, "importlib.metadata": SimpleNamespace(version=lambda name: "5")}
told = {name: module for name, module in told.items() if name not in MODULES}
MODULES.update(told)
try:
    import paramiko as paramiko
finally:
    for name, module in told.items():
        if MODULES[name] is module:
            del MODULES[name]
