"""What can go wrong with machines.

InfraError
├── UnknownProvider     no cloud of that name
├── BadRequest          the cloud can't give what was asked for
├── MissingTool         a program or package that the cloud needs isn't here
├── CreateFailed        the machine didn't come up; what was made of it is gone again
├── MayStillExist       something may still be there, and billing: names what, and what to do
├── NoCredentials       no key for the cloud: names every variable and file that was looked at
├── NoAnswer            the cloud can't be reached, or took too long
├── WrongClock          this computer's clock isn't the cloud's
├── InUse               another command, of this computer or another, works on it: nothing was touched
└── Refused             the cloud said no, in a way that we don't know
    ├── NoStock             sold out: another zone, region or type may do
    ├── QuotaExceeded       the account's own limit
    ├── BadCredentials      the key is wrong, disabled or expired
    ├── NotAllowed          the key has no right to it, or the account isn't verified
    ├── NotEnoughBalance    no money, or no way to pay
    ├── BadBid              the price cap is below the market, or no price at all
    └── NoSpot              no spot machines for this type, region or account
"""

from __future__ import annotations

import re
from collections.abc import Mapping


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


class NoCredentials(InfraError):
    """No key for the cloud. `looked_at` names every variable and file."""

    def __init__(self, message: str, looked_at: tuple[str, ...], hint: str = "") -> None:
        super().__init__(message, hint)
        self.looked_at = looked_at


class NoAnswer(InfraError):
    """The cloud can't be reached, or took longer than it was given. What was asked may have happened all the same."""


class InUse(InfraError):
    """Another command works on it; nothing was touched."""


class WrongClock(InfraError):
    """This computer's clock isn't the cloud's: what is signed is refused, and a machine would end at another time."""


class Refused(InfraError):
    """The cloud said no. `code` is its own word for why."""

    meaning = "it refused"
    advice = "the cloud's documentation of its error codes says why"

    def __init__(self, message: str, hint: str = "", code: str = "") -> None:
        super().__init__(message, hint)
        self.code = code


class NoStock(Refused):
    """Sold out."""

    meaning = "this machine is sold out there"
    advice = "the next offer, another zone, region or type may be in stock"


class QuotaExceeded(Refused):
    """The account's own limit."""

    meaning = "the account's quota is used up"
    advice = "release what isn't needed, or ask for more quota in the cloud's console"


class BadCredentials(Refused):
    """The key is wrong, disabled or expired."""

    meaning = "it doesn't accept the key"
    advice = "the key is wrong, disabled or expired, or this computer's clock is off: make a new key in the console"


class NotAllowed(Refused):
    """The key has no right to it, or the account isn't verified."""

    meaning = "the key has no right to do this, or the account isn't verified"
    advice = "give the key's user the right in the console, or complete the account's verification there"


class NotEnoughBalance(Refused):
    """No money, or no way to pay."""

    meaning = "the account has not enough balance, or no way to pay"
    advice = "top the account up, or settle what is unpaid, in the cloud's console"


class BadBid(Refused):
    """The price cap is below the market, or no price at all."""

    meaning = "the price cap is below what the machine costs now, or there is no price"
    advice = "raise max_price, or leave spot out"


class NoSpot(Refused):
    """No spot machines for this type, region or account."""

    meaning = "there are no spot machines of this type, in this region or for this account"
    advice = "leave spot out, or try another type or region"


CODE = re.compile(  # a code in each of the three clouds' shapes
    r"""(?: \bCode: \s* | \bCode= | \berror_?code \W+ | "code" \s* : \s* " | failed \s with \s code \s+ )
        ( [A-Za-z]\w* (?: \.\w+ )* )""",
    re.VERBOSE | re.IGNORECASE,
)


def classify(title: str, table: Mapping[str, type[Refused]], text: str) -> Refused:
    """What a cloud's message means. Of several codes of the table the longest, so the most specific, decides.

    A code of the table also stands for those below it: `QuotaExceeded` for `QuotaExceeded.Eip`. Nothing of the text but
    the code goes into the message, since a plugin's output may hold anything.
    """
    found = [code for code in table if re.search(rf"(?<![\w.]){re.escape(code)}(?!\w)", text)]
    if found:
        code = max(found, key=len)
        kind = table[code]
        return kind(f"{title}: {kind.meaning} ({code})", kind.advice, code)
    for kind in Refused.__subclasses__():  # raised by a program of ours, inside the engine's run
        if f"infra.errors.{kind.__name__}:" in text:
            return kind(f"{title}: {kind.meaning}", kind.advice)
    unknown = CODE.search(text)
    code = unknown.group(1) if unknown else ""
    return Refused(f"{title} refused ({code or 'no code given'})", Refused.advice, code)
