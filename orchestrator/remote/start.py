"""How an agent starts in a third of the time that its sources would take: they are compiled once and kept.

The loader, which is the command that a client runs (see `wire`), finds them kept, or is sent them and compiles them;
then it runs this file, and calls `begin`. Standard library only, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys

TYPE_CHECKING = False  # as typing has it: to import that is a fifth of the agent's start
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType
    from typing import Any, Dict, Optional

# What few answers need: loaded at its first use, which is 20 ms that most agents never spend.
LATER = (
    "ctypes", "fnmatch", "glob", "hashlib", "platform", "shlex", "shutil", "site", "socket", "subprocess", "tarfile",
    "threading",
)  # fmt: skip


class Compiled:
    """Imports our modules from what was compiled, as if from the files that `install` writes."""

    def __init__(self, codes: Dict[str, CodeType], folder: str) -> None:
        self.codes, self.folder = codes, folder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Optional[ModuleSpec]:
        if name + ".py" not in self.codes:
            return None
        loader: Any = self
        return importlib.util.spec_from_file_location(name, os.path.join(self.folder, name + ".py"), loader=loader)

    def create_module(self, spec: ModuleSpec) -> None:
        """As Python does it."""

    def exec_module(self, module: ModuleType) -> None:
        exec(self.codes[module.__name__ + ".py"], module.__dict__)  # noqa: S102  it's ours


class Later:
    """A module in its place until it is used. (importlib's LazyLoader loads it as soon as it is imported twice.)"""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute == "__spec__":  # by which `import` sees whether another thread is still loading it
            raise AttributeError(attribute)
        modules: Dict[str, Any] = sys.modules
        if modules.get(self.name) is self:
            del modules[self.name]
        return getattr(importlib.import_module(self.name), attribute)


def begin(sources: Dict[str, str], codes: Dict[str, CodeType], kept: str, fresh: bytes) -> None:
    """Runs the agent; `fresh` is what belongs into the file `kept`, nothing where it is there."""
    folder = os.path.dirname(kept)
    sys.dont_write_bytecode = True
    finder: Any = Compiled(codes, folder)
    sys.meta_path.insert(0, finder)
    later: Dict[str, Any] = {name: Later(name) for name in LATER if name not in sys.modules}
    sys.modules.update(later)

    def install() -> None:
        leave(folder, sources)
        if fresh:
            keep(kept, fresh)

    importlib.import_module("agent").main(install)
    os._exit(0)  # Python's own end takes 2 ms, and looks into what isn't loaded yet


def leave(folder: str, sources: Dict[str, str]) -> None:
    """Puts the modules where what outlives us is started from. Raises OSError."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    os.makedirs(os.path.join(os.path.dirname(folder), "trees"), exist_ok=True)
    for module in sources.keys() - {"start.py", "agent.py", "lanes.py"}:
        name, source = os.path.join(folder, module), sources[module].encode()
        with contextlib.suppress(OSError), open(name, "rb") as file:
            if file.read() == source:
                continue
        write(name, source)


def keep(kept: str, data: bytes) -> None:
    """Keeps what was compiled, in the place of another client's. Where that can't be, the next agent compiles again."""
    folder = os.path.dirname(kept)
    with contextlib.suppress(OSError):
        write(kept, data)
        for name in os.listdir(folder):
            if name.startswith("agent-") and os.path.join(folder, name) != kept:
                os.unlink(os.path.join(folder, name))


def write(name: str, data: bytes) -> None:
    """Writes a file aside, then renames it. Raises OSError."""
    aside = f"{name}.{os.getpid()}"
    try:
        with open(aside, "wb") as file:
            file.write(data)
        os.replace(aside, name)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise
