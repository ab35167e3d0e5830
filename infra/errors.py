"""What can go wrong with machines.

InfraError
├── UnknownProvider     no cloud of that name
├── BadRequest          the cloud can't give what was asked for
├── MissingTool         a program or package that the cloud needs isn't here
├── CreateFailed        the machine didn't come up; what was made of it is gone again
└── MayStillExist       something may still be there, and billing: names what, and what to do
"""


class InfraError(Exception):
    """An error with what happened (the message) and what to do next (`hint`)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UnknownProvider(InfraError):
    """No cloud of that name."""


class BadRequest(InfraError):
    """The cloud can't give what was asked for; nothing was created."""


class MissingTool(InfraError):
    """A program or package that the cloud needs isn't installed."""


class CreateFailed(InfraError):
    """The machine didn't come up, and what was made of it is verified gone."""


class MayStillExist(InfraError):
    """Something may still be there. `survivors` names each."""

    def __init__(self, message: str, survivors: list[str], hint: str = "") -> None:
        super().__init__(message, hint)
        self.survivors = survivors
