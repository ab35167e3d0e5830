"""Keys of a cloud's account, where the cloud's own tools keep them: variables first, then files. Nothing here logs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import NoCredentials
from infra.provider import Credentials

NAMES = ("key_id", "secret", "token", "region", "project")


@dataclass(frozen=True)
class Variables:
    """The environment variables of a cloud: the first of each is the one that its plugin gets, the others are old."""

    key_id: tuple[str, ...]
    secret: tuple[str, ...]
    token: tuple[str, ...] = ()
    region: tuple[str, ...] = ()
    project: tuple[str, ...] = ()
    profile: tuple[str, ...] = ()

    def value(self, name: str, environ: Mapping[str, str]) -> str:
        """What the environment says, or nothing."""
        names: tuple[str, ...] = getattr(self, name)
        return next((environ[one].strip() for one in names if environ.get(one, "").strip()), "")


def find(
    title: str,
    environ: Mapping[str, str],
    variables: Variables,
    files: list[Path],
    read: Callable[[str], Mapping[str, str]],
) -> Credentials:
    """The key from the variables, else from the files, by `read(profile)`. Raises NoCredentials with all it looked at.

    Half a key in the environment isn't mixed with half a key of a file. The region may come from either.
    """
    said = {name: variables.value(name, environ) for name in NAMES}
    source = "environment"
    trouble = ""
    if not (said["key_id"] and said["secret"]):
        try:
            found = read(variables.value("profile", environ))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            found, trouble = {}, "" if isinstance(error, FileNotFoundError) else str(error)
        said = {name: found.get(name) or (said[name] if name in ("region", "project") else "") for name in NAMES}
        said["region"] = variables.value("region", environ) or said["region"]
        source = " and ".join(map(str, files))
    if not (said["key_id"] and said["secret"]):
        looked_at = (*variables.key_id, *variables.secret, *map(str, files))
        raise NoCredentials(
            f"no key for {title}: looked at {', '.join(looked_at)}{f'; {trouble}' if trouble else ''}",
            looked_at,
            f"set {variables.key_id[0]} and {variables.secret[0]}, or let the cloud's own command line write its file",
        )
    environment = {getattr(variables, name)[0]: said[name] for name in NAMES if getattr(variables, name) and said[name]}
    return Credentials(**said, source=source, environment=environment)


def of_store(environ: Mapping[str, str], home: Path) -> Credentials:
    """The key for an object store of nobody's we know, where Amazon's tools keep theirs. Raises NoCredentials."""
    variables = Variables(
        key_id=("AWS_ACCESS_KEY_ID",), secret=("AWS_SECRET_ACCESS_KEY",), token=("AWS_SESSION_TOKEN",),
        region=("AWS_REGION", "AWS_DEFAULT_REGION"), profile=("AWS_PROFILE",),
    )  # fmt: skip
    path = Path(environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws" / "credentials")

    def read(profile: str) -> Mapping[str, str]:
        import configparser

        parser = configparser.RawConfigParser()
        try:
            parser.read_string(path.read_text(encoding="utf-8"))
            section = parser[profile or "default"]
        except (configparser.Error, KeyError):
            raise ValueError(f"{path.name} can't be read, or has no profile {profile or 'default'!r}") from None
        names = {"key_id": "aws_access_key_id", "secret": "aws_secret_access_key", "token": "aws_session_token"}
        return {ours: section.get(theirs, "") for ours, theirs in names.items()}

    return find("an S3 store", environ, variables, [path], read)


def profile_of(path: Path, profile: str, names: Mapping[str, str]) -> dict[str, str]:
    """A profile of a file of the form {"current": NAME, "profiles": [{"name": NAME, ...}]}, in our names.

    Raises ValueError or LookupError, in words, for a file of another form, and for a profile without a key.
    """
    content = parsed(path)
    wanted = profile or content.get("current") or "default"
    for one in content.get("profiles", []):
        if one.get("name") == wanted:
            if not one.get(names["key_id"]):
                raise LookupError(f"{path.name}: profile {wanted!r} (mode {one.get('mode')}) holds no key of its own")
            return {ours: str(one.get(theirs) or "") for ours, theirs in names.items()}
    raise LookupError(f"{path.name}: there is no profile {wanted!r}")


def parsed(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Its text goes into no error, since it holds keys."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return content
