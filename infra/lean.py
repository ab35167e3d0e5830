"""paramiko, in half the time.

paramiko imports invoke for `Match exec` lines of an ssh_config, which nothing here reads, and invoke imports asyncio,
unittest and a YAML parser of its own: 80 ms of the 180 that every command would spend on it. paramiko does without
invoke where it isn't installed, so it is told that.
"""

import sys

sys.modules.setdefault("invoke", None)  # type: ignore[arg-type]
import paramiko as paramiko  # noqa: E402

if sys.modules["invoke"] is None:
    del sys.modules["invoke"]
