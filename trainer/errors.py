"""What can go wrong in training, and the exit code each error ends the program with.

TrainerError
├── BadInput                2    what was asked for can't be done as asked
│   ├── BadConfig           2    an option or a configuration file isn't valid
│   ├── UnknownModel        2    no model of that name
│   ├── BadModel            2    the model doesn't fit the data, or can't be made
│   ├── BadExport           2    the run can't be exported or served in the form asked for
│   ├── MissingDevice       2    the device asked for isn't here
│   ├── NotCompiled         2    --compile was asked for, and there is no compiler, or the model is too much for it
│   ├── MissingPackage      2    a Python package that the run needs isn't installed
│   ├── BadOutput           2    the output folder can't be written
│   ├── BadData             2    the data isn't there, or isn't laid out as it must be
│   │   ├── DownloadFailed  2    a data set couldn't be fetched
│   │   └── UnreadableImage 2    files that call themselves images, and aren't
│   └── BadRun              2    the run folder doesn't hold what is asked of it
│       ├── CorruptCheckpoint 2  a checkpoint can't be read
│       └── OtherRun        2    the folder holds a run of another configuration
├── ExportDiffers           1    what was exported doesn't answer as the model does
├── Diverged                3    the loss is no number any more
└── Stopped           143/130    a signal asked for the end: SIGTERM or SIGINT
"""

import signal


class TrainerError(Exception):
    """An error with what happened and what it means (the message), and what to do next (`hint`)."""

    exit_code = 1
    reason: str | None = None  # the word that goes into the exit record, where the cause has one

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        """One line: what happened, then what to do."""
        message = " ".join(super().__str__().split()).rstrip(".")
        end = "" if message.endswith(("?", "!")) else "."
        return f"{message}{end} {self.hint}".rstrip() if self.hint else message


class BadInput(TrainerError):
    """What was asked for can't be done as asked."""

    exit_code = 2


class BadConfig(BadInput):
    """An option or a configuration file isn't valid."""


class UnknownModel(BadInput):
    """No model of that name."""


class BadModel(BadInput):
    """The model doesn't fit the data, or can't be made."""


class BadExport(BadInput):
    """The run can't be exported or served in the form asked for."""


class MissingDevice(BadInput):
    """The device asked for isn't here."""


class NotCompiled(BadInput):
    """--compile was asked for, and there is no compiler, or the model is too much for it."""


class MissingPackage(BadInput):
    """A Python package that the run needs isn't installed."""


class BadOutput(BadInput):
    """The output folder can't be written."""


class BadData(BadInput):
    """The data isn't there, or isn't laid out as it must be."""


class DownloadFailed(BadData):
    """A data set couldn't be fetched."""


class UnreadableImage(BadData):
    """Files that call themselves images, and aren't."""


class BadRun(BadInput):
    """The run folder doesn't hold what is asked of it."""


class CorruptCheckpoint(BadRun):
    """A checkpoint can't be read."""


class OtherRun(BadRun):
    """The folder holds a run of another configuration."""


class ExportDiffers(TrainerError):
    """What was exported doesn't answer as the model does; the file was removed."""


class Diverged(TrainerError):
    """The loss is no number any more; the last good checkpoint is kept."""

    exit_code = 3
    reason = "diverged"


class Stopped(TrainerError):
    """A signal asked for the end. The exit code is the shell's: 128 and the signal's number."""

    reason = "stopped"

    def __init__(self, message: str, hint: str = "", *, signal_number: int = signal.SIGTERM) -> None:
        super().__init__(message, hint)
        self.exit_code = 128 + signal_number
