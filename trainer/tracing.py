"""--profile: a trace of a few steps, in Chrome's format: what the processor and the GPU did when."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import files

if TYPE_CHECKING:
    from torch.profiler import profile

NAME = "trace.json"
SKIPPED, TRACED = 3, 5  # steps: the first of a process are slower than the rest


class Tracer:
    """Watches steps until it has what it wants; where it isn't asked for, `step` does nothing."""

    def __init__(self, folder: Path, wanted: bool) -> None:
        self._folder = folder
        self._steps = 0
        self._profile: profile | None = None
        self._wanted = wanted

    def step(self) -> None:
        """Told before each step."""
        if not self._wanted:
            return
        if self._steps == SKIPPED:
            from torch.profiler import profile

            self._profile = profile()
            self._profile.start()
        if self._steps == SKIPPED + TRACED:
            self.close()
        self._steps += 1

    def close(self) -> None:
        """Write what was seen, if anything was."""
        watched, self._profile, self._wanted = self._profile, None, False
        if watched is None:
            return
        watched.stop()
        aside = self._folder / f".{NAME}.tmp"
        watched.export_chrome_trace(str(aside))
        aside.replace(self._folder / NAME)
        files.sync_folder(self._folder)
        print(f"note: a trace is in {self._folder / NAME}", file=sys.stderr, flush=True)
