"""What a run takes of its machine: cores, memory, and of its GPU what nvidia-smi says; and what the machine costs."""

import contextlib
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from trainer import files

EVERY_S = 5.0  # between looks at the GPU, each of a tenth of a second
FIRST_S = 0.5  # so that a short run has one too
PATIENCE_S = 8.0  # for nvidia-smi: a driver that hangs isn't asked again
PRICE = "price.json"  # {"per_hour": 12.3, "currency": "CNY", "machine": "ecs.gn7i-c8g1.2xlarge"}


@dataclass(frozen=True)
class Use:
    """What a time took: cores that were busy on average, and of memory the most until then; None: not known here."""

    cpu_cores: float | None = None
    memory_gib: float | None = None
    gpu_use: float | None = None  # from 0 to 1, whoever used it
    gpu_memory_gib: float | None = None


@dataclass
class Meter:
    """Measures from its start, or from the last `take`, to the next. `gpu` is how nvidia-smi is told which; "": none.

    The CPU and the memory are this process's own.
    """

    gpu: str = ""
    every_s: float = EVERY_S
    _looks: list[tuple[float, float]] = field(default_factory=list)  # share, MiB

    def __post_init__(self) -> None:
        self._over, self._lock = threading.Event(), threading.Lock()
        self._from = (time.perf_counter(), time.process_time())
        self._program = shutil.which("nvidia-smi") if self.gpu else None
        self._thread = threading.Thread(target=self._look_on, name="nvidia-smi", daemon=True)
        if self._program:
            self._thread.start()

    @property
    def watching(self) -> bool:
        """Whether a GPU is being looked at."""
        return self._thread.is_alive()

    def take(self) -> Use:
        """What was taken since the last time."""
        before, self._from = self._from, (time.perf_counter(), time.process_time())
        wall, cpu = (now - then for now, then in zip(self._from, before, strict=True))
        with self._lock:
            looks, self._looks = self._looks, []
        return Use(
            cpu_cores=round(cpu / wall, 3) if wall > 0 else None,
            memory_gib=_peak_gib(),
            gpu_use=round(sum(share for share, _ in looks) / len(looks), 3) if looks else None,
            gpu_memory_gib=round(max(mib for _, mib in looks) / 1024, 3) if looks else None,
        )

    def close(self) -> None:
        """Look no more."""
        self._over.set()

    def _look_on(self) -> None:
        pause = min(FIRST_S, self.every_s)
        while not self._over.wait(pause):
            pause = self.every_s
            try:
                look = self._look()
            except (OSError, subprocess.SubprocessError, ValueError):
                return
            with self._lock:
                self._looks.append(look)

    def _look(self) -> tuple[float, float]:
        query = ("--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits")
        done = subprocess.run(
            [str(self._program), f"--id={self.gpu}", *query], capture_output=True, timeout=PATIENCE_S, check=True
        )
        share, mib = map(float, done.stdout.decode().split(","))
        return share / 100, mib


def _peak_gib() -> float | None:
    """The most memory that this process has held."""
    if sys.platform == "win32":
        return None
    import resource

    units = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units, 3)


def record_price(out: Path) -> None:
    """Write what the machine costs into the run's folder, where whoever rented it says so. Raises OSError."""
    per_hour = math.nan
    with contextlib.suppress(ValueError):
        per_hour = float(os.environ.get("ORCHESTRATE_PRICE_PER_HOUR", ""))
    currency, machine = (os.environ.get(f"ORCHESTRATE_{name}", "") for name in ("CURRENCY", "MACHINE"))
    if math.isfinite(per_hour) and currency:
        files.replace_json(out / PRICE, {"per_hour": per_hour, "currency": currency, "machine": machine})
