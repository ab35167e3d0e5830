"""What a configuration means here: which providers are allowed, and the values that only the environment has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from infra import provider as clouds
from orchestrator.config import quantities as q
from orchestrator.config.document import Loc
from orchestrator.config.fields import Config
from orchestrator.config.origin import refuse


def provider_names(config: Config) -> tuple[str, ...]:
    """The providers allowed, each of them there, and the regions theirs. Raises UsageError with the line or flag."""
    names = config.resources.providers
    if names == (q.ANY,):
        names = tuple(clouds.rentable())
        message = "no cloud's package is installed, so there is none to rent from"
        wrong = [] if names else [config.origin.problem(("resources", "provider"), message)]
        refuse(wrong, "pip install 'orchestrate[aliyun]', or tencent, or huawei")
    known = clouds.names()
    refuse(
        [_unknown(config, "provider", index, name, known) for index, name in enumerate(names) if name not in known],
        f"there are: {', '.join(known)}",
    )
    if asked := config.resources.regions:
        theirs = [region for name in names for region in clouds.load(name).regions]
        whose = f" of {', '.join(names)}"
        wrong = [_unknown(config, "region", i, one, theirs, whose) for i, one in enumerate(asked) if one not in theirs]
        refuse(wrong, f"there are: {', '.join(theirs)}")
    return names


def _unknown(
    config: Config, kind: str, index: int, name: str, known: Sequence[str], whose: str = ""
) -> tuple[int, str]:
    """What is wrong with a name that nobody has."""
    near = q.closest(name.lower(), known)
    message = f"there is no {kind} {q.shown(name)}{whose}" + (f"; did you mean {near}?" if near else "")
    item: Loc = ("resources", kind, index)
    return config.origin.problem(item if item in config.origin.lines else item[:-1], message)


def resolve_envs(config: Config, environ: Mapping[str, str]) -> dict[str, str]:
    """The job's variables; those of null from `environ`. Raises UsageError that names all missing."""
    values = {name: environ.get(name) if value is None else value for name, value in config.envs.items()}
    _refuse_missing(config, {("envs", name): name for name, value in values.items() if value is None})
    return {name: value for name, value in values.items() if value is not None}


def resolve_secrets(config: Config, environ: Mapping[str, str]) -> dict[str, str]:
    """The secrets' values, which nothing else here holds. Raises UsageError that names all missing or empty."""
    missing: dict[Loc, str] = {}
    for index, name in enumerate(config.secrets):
        by_name: Loc = ("secrets", name)  # from a mapping; otherwise from a list
        if not environ.get(name):
            missing[by_name if by_name in config.origin.lines else ("secrets", index)] = name
    _refuse_missing(config, missing)
    return {name: environ[name] for name in config.secrets}


def _refuse_missing(config: Config, missing: Mapping[Loc, str]) -> None:
    problems = [config.origin.problem(loc, f"{name} is not set in your environment") for loc, name in missing.items()]
    refuse(problems, "set first: export " + " ".join(f"{name}=..." for name in missing.values()))
