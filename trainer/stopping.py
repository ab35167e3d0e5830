"""SIGTERM and SIGINT: the machine is taken back, or someone presses Ctrl-C."""

import os
import signal
from types import FrameType, TracebackType

from trainer.errors import Stopped
from trainer.progress import record_reason


class StopSignals:
    """Notes that a stop was asked for. Used as a context manager, in the main thread; unentered, it never fires.

    While `importing` a signal ends the process at once: torch's C++ takes no exception there, and aborts. Then, until
    `deferred` is set, it raises Stopped: loading holds nothing worth saving. Once the loop runs,
    the signal is only noted in `asked`, and the loop ends the step, writes its checkpoint, and stops by itself.
    What a library makes of Stopped (a module that failed, another exception) leaves the context manager as Stopped.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.importing = True
        self.deferred = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self.asked and not self.deferred and isinstance(error, Exception) and not isinstance(error, Stopped):
            raise self._stopped() from error

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        if self.importing:
            error = self._stopped()
            record_reason("stopped")
            if os.environ.get("RANK", "0") == "0":  # of many processes that stop one says it
                os.write(2, f"stopped: {error}\n".encode())
            os._exit(error.exit_code)
        if not self.deferred:
            raise self._stopped()

    def _stopped(self) -> Stopped:
        text = f"stopped by {self.name} before the first step: no new checkpoint to write"
        return Stopped(text, signal_number=self.asked or signal.SIGTERM)

    @property
    def name(self) -> str:
        """The signal's name, e.g. "SIGTERM"."""
        return signal.Signals(self.asked).name if self.asked else "no signal"
