"""What a project and this computer need: init, schema, doctor, engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.flags import Arg, Json
from orchestrator.commands.telling import done, told
from orchestrator.errors import UsageError

NewFile = Annotated[Path, Arg(metavar="FILE", help="Left out: orchestrate.yaml.")]


def init(path: NewFile = Path("orchestrate.yaml")) -> None:
    """Write a commented orchestrate.yaml."""
    with told(False, False) as watcher:
        from orchestrator.config.schema import template

        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(template())
        except FileExistsError as error:
            raise UsageError(f"{path} exists already", "move it away first; nothing was changed") from error
        except OSError as error:
            raise UsageError(f"{path} can't be written: {error.strerror}") from error
        watcher.say(f"wrote {path}")


def schema() -> None:
    """Print the JSON schema of orchestrate.yaml, for editors."""
    with told(False, False):
        from orchestrator.config import schema as form

        print(json.dumps(form.schema(), indent=2))


def doctor(as_json: Json = False) -> None:
    """What is missing here, and how to get it."""
    with told(False, as_json):
        from orchestrator import doctor as look

        findings = look.examine()
        if as_json:
            done(True, [finding.__dict__ for finding in findings])
        for finding in [] if as_json else findings:
            print(f"{'ok     ' if finding.ok else 'missing' if finding.needed else 'absent '}  {finding.what}")
            if not finding.ok:
                print(f"           {finding.how}")
        if any(finding.needed and not finding.ok for finding in findings):
            raise typer.Exit(3)


def engine(as_json: Json = False) -> None:
    """Which Pulumi engine is used, and where it is; gets it where there is none."""
    with told(False, as_json) as watcher:
        from orchestrator.session import mapped

        with mapped():
            from infra import engine as engines

            found = engines.find() or engines.install(watcher.say)
        done(as_json, found.__dict__, f"{found.path} ({found.version}, {found.how})")
