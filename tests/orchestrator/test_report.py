"""What a person sees, whatever a job prints and whatever the locale is."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.provider import Offer
from orchestrator.errors import UsageError
from orchestrator.report import LONGEST_LINE, Lines, Terminal, bar_line, clean, describe, duration
from orchestrator.watch import Proposal
from tests.conftest import REPOSITORY


def lines(*pieces: bytes) -> list[str]:
    """The whole lines, and the rest as a last one."""
    feeding = Lines()
    found = [line for piece in pieces for line in feeding.feed(piece)]
    return [*found, feeding.rest] if feeding.rest else found


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain\n", "plain"),
        (b"\x1b[31mred\x1b[0m\n", "red"),
        (b"\x1b[2J\x1b[1;1Hhome\n", "home"),
        (b"\x1b]0;title\x07after\n", "after"),
        (b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\\n", "link"),
        (b"a\x08\x08b\x00c\x7f\n", "abc"),
        ("\x9b31mc1\x85\n".encode(), "31mc1"),
        (b"\x1b(Bcharset\x1bM\x1b=\n", "charset"),
        (b"\x1b\n", ""),
        (b"tab\there\n", "tab\there"),
        ("中文 🐉\n".encode(), "中文 🐉"),
        (b"windows\r\n", "windows"),
        (b"10%\r20%\r30%\n", "30%"),
        (b"10%\r20%\r\n", "20%"),
        (b"\r\r\r\n", ""),
    ],
)
def test_a_line_is_what_a_terminal_would_show_and_cannot_steer_it(raw: bytes, shown: str) -> None:
    assert lines(raw) == [shown]
    assert lines(*(raw[i : i + 1] for i in range(len(raw)))) == [shown]


def test_bytes_that_are_no_text_are_shown_all_the_same() -> None:
    assert lines("中文\n".encode("gbk"), b"ok\n")[1] == "ok"
    assert "\ufffd" in lines(b"\xff\xfe\n")[0]


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(1, 7))
def test_nothing_that_steers_a_terminal_is_left_however_it_comes_in_pieces(data: bytes, size: int) -> None:
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    feeding = Lines()
    for line in [line for piece in pieces for line in feeding.feed(piece)]:
        assert "\n" not in line and "\r" not in line
        assert all(letter == "\t" or not (ord(letter) < 32 or 127 <= ord(letter) < 160) for letter in line)


@settings(deadline=None)
@given(
    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cc", "Cs"]), max_size=100), st.integers(1, 5)
)
def test_text_survives_wherever_it_is_cut(text: str, size: int) -> None:
    data = (text + "\n").encode()
    assert lines(*(data[i : i + size] for i in range(0, len(data), size))) == [text]


@pytest.mark.parametrize(
    "lump", [b"x" * (1 << 20), b"x" * 1000 + b"\r", b"\x1b[31m" * 1000], ids=["line", "bar", "escapes"]
)
def test_a_line_without_end_takes_no_memory(lump: bytes) -> None:
    feeding, longest, total = Lines(), 0, 0
    tracemalloc.start()
    while total < 100 << 20 if len(lump) > 10_000 else total < 5 << 20:
        total += len(lump)
        longest = max(longest, *map(len, feeding.feed(lump)), 0, len(feeding.rest))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 << 20 and longest <= LONGEST_LINE + len(lump)


LOCALES = [
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "gbk"},
    {"LC_ALL": "C.UTF-8"},
]


@pytest.mark.parametrize("locale", LOCALES)
def test_no_locale_makes_what_is_said_fail(locale: dict[str, str]) -> None:
    program = (
        "from orchestrator.report import Terminal\n"
        "t = Terminal(yes=True)\n"
        "t.say('步骤 ✓ 🐉 \\udcff')\n"
        "t.log('训练 🐉\\n'.encode() + b'\\xff\\n')\n"
        "t.progress({'epoch': 1})\n"
        "t.close()\n"
    )
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), **locale}
    done = subprocess.run([sys.executable, "-"], input=program.encode(), env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert done.stdout == "训练 🐉\n".encode() + b"\xff\n"  # byte for byte, where it is no terminal


class Tty(io.TextIOWrapper):
    """A stream that says that it is a terminal."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="replace", write_through=True)

    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined, no-any-return]


def on_terminal(monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8") -> tuple[Terminal, Tty, Tty]:
    out, err = Tty(encoding), Tty(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    return Terminal(yes=True), out, err


def test_on_a_terminal_a_job_cannot_steer_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, out, err = on_terminal(monkeypatch)
    terminal.log(b"\x1b]0;evil\x07one\x1b[2J\n\x9b5mtwo")
    terminal.say("said\x1b[2J")
    terminal.close()
    assert out.text == "one\n\ufffd5mtwo\n" and err.text == "said\n"


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "utf-8"])
def test_on_a_terminal_no_encoding_makes_it_fail(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    terminal, out, _ = on_terminal(monkeypatch, encoding)
    terminal.log("ü 🐉\n".encode())
    terminal.progress({"epoch": 1, "epochs": 2, "batch": 1, "batches": 10, "loss": 0.5, "eta_s": 61})
    terminal.log("🐉 second\n".encode())
    terminal.close()
    assert "?" in out.text or "🐉" in out.text


NAN, INF = float("nan"), float("inf")
STRANGE: list[dict[str, Any]] = [
    {},
    {"epoch": "x"},
    {"epoch": None, "loss": []},
    {"epoch": -5, "epochs": -1},
    {"epochs": 0, "batches": 0},
    {"loss": NAN, "eta_s": NAN},
    {"loss": INF, "eta_s": INF, "accuracy": INF},
    {"epoch": NAN, "epochs": NAN, "batch": INF, "batches": 1},
    {"epoch": 10**400},
    {"epoch": True},
    {"epoch": 5, "epochs": 2, "batch": 50, "batches": 3},
    {"images_per_s": 1e300, "eta_s": -1},
]


@pytest.mark.parametrize("progress", STRANGE)
def test_a_progress_of_any_kind_has_its_line(progress: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=200)
    console.print(bar_line(progress, 200))
    assert "epoch" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_bar_says_how_far_how_good_and_how_long() -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=200)
    known = {"epoch": 1, "epochs": 4, "batch": 3, "batches": 12, "loss": 0.25, "accuracy": 0.5}
    console.print(bar_line({**known, "images_per_s": 1234.5, "eta_s": 3700}, 200))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("epoch 2/4", "batch 3/12", "loss 0.2500", "accuracy 50.0 %", "1,234 images/s", "1 h 1 min left"):
        assert words in shown


@pytest.mark.parametrize("width", [20, 60, 80, 110])
def test_a_bar_is_one_line_at_any_width(width: int) -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width)
    known = {"epoch": 200, "epochs": 400, "batch": 1234, "batches": 5678, "loss": 0.25, "accuracy": 0.5}
    console.print(bar_line({**known, "images_per_s": 1234567.5, "eta_s": 370000}, width))
    assert console.file.getvalue().count("\n") == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"), (0.4, "0 s"), (42, "42 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (3599.9, "1 h 0 min"),
        (7500, "2 h 5 min"), (90000, "25 h 0 min"), (float("nan"), "-"), (float("inf"), "-"),
    ],
)  # fmt: skip
def test_a_duration_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


OFFER = Offer("aliyun", "cn-x", "a", "ecs.gn7i", 8, 30, gpus=2, gpu="A10", price_per_hour=1.5, currency="CNY")


def test_a_plan_says_what_it_costs_and_when_it_ends() -> None:
    other = Offer("aliyun", "cn-y", "a", "ecs.gn6", 4, 16, price_per_hour=None)
    shown = describe(Proposal("s", "Alibaba Cloud", [OFFER, other], 7200, ["mind the gap"]))
    assert shown[0] == "session   s"
    assert shown[1] == "machine   Alibaba Cloud, cn-x: ecs.gn7i, 2 x A10, 8 CPUs, 30 GiB"
    assert shown[2] == "price     1.50 CNY/h, at most 3.00 CNY"
    assert shown[3].endswith("at the latest, by itself")
    assert shown[4] == "or else   aliyun cn-y: ecs.gn6, price unknown"
    assert shown[5] == "note      mind the gap"


def test_what_is_free_is_called_free_and_spot_is_called_spot() -> None:
    free = Offer("local", "local", "local", "this computer", 2, 4, price_per_hour=0.0, spot=True, price_source="it is")
    shown = describe(Proposal("s", "this computer", [free], 60, []))
    assert shown[1] == "machine   this computer, 2 CPUs, 4 GiB, spot"
    assert shown[2:4] == ["price     free", "said by   it is"]


def test_money_is_not_spent_where_nobody_can_say_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    proposal = Proposal("s", "Alibaba Cloud", [OFFER], 60, [])
    with pytest.raises(UsageError, match="nobody is here"):
        Terminal(yes=False).agrees(proposal)
    assert Terminal(yes=True).agrees(proposal)


@pytest.mark.parametrize(
    ("typed", "agreed"), [("y", True), ("YES", True), ("是", True), ("n", False), ("", False), ("x", False)]
)
def test_only_a_yes_is_a_yes(monkeypatch: pytest.MonkeyPatch, typed: str, agreed: bool) -> None:
    stdin = io.StringIO(typed + "\n")
    stdin.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", stdin)
    assert Terminal(yes=False).agrees(Proposal("s", "x", [OFFER], 60, [])) is (typed in ("y", "YES", "是"))


def test_cleaning_twice_is_cleaning_once() -> None:
    tricky = "\x1b\x1b[31m[31m\x1b]0;\x1b\x07x"
    assert clean(clean(tricky)) == clean(tricky) and "\x1b" not in clean(tricky)
