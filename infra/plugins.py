"""A cloud's plugin for the engine: find it, or get it, or say exactly what to fetch.

The engine keeps plugins in $PULUMI_HOME/plugins (~/.pulumi/plugins), and wants the very version that the Python SDK
names.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from infra.engine import Engine, platform_name
from infra.enginecommand import environment
from infra.errors import MissingTool
from infra.provider import Say

FETCH_WITHIN_S = 900.0  # alicloud's is 250 MB unpacked; slow lines abroad
SETTING = "ORCHESTRATE_PLUGIN_DIR"  # a folder with plugin files, one such file, or the URL of a mirror

# Huawei's own address puts the version without its v into a URL that has one (issue 25 there); seen with 0.0.12.
_HUAWEI = "https://github.com/huaweicloud/pulumi-huaweicloud/releases/download"
OVERRIDES = f"^{_HUAWEI.replace('.', chr(92) + '.')}={_HUAWEI}/v${{VERSION}}"


@dataclass(frozen=True)
class Plugin:
    """A resource plugin. `page` is where a person finds its files; `server` where the engine does, if not its usual."""

    name: str
    version: str
    page: str
    server: str = ""

    @property
    def file(self) -> str:
        """The name of its file for this computer."""
        return f"pulumi-resource-{self.name}-v{self.version}-{platform_name()}.tar.gz"


def of_package(package: str, distribution: str, page: str) -> Plugin:
    """The plugin that an installed SDK wants: its name and server from `pulumi-plugin.json`, the SDK's own version.

    Doesn't import it, which takes seconds. Raises ModuleNotFoundError where it isn't installed.
    """
    installed = importlib.metadata.distribution(distribution)
    said = json.loads(Path(str(installed.locate_file(f"{package}/pulumi-plugin.json"))).read_text())
    return Plugin(said["name"], installed.version, page, said.get("server", ""))


def home() -> Path:
    """Where the engine keeps plugins."""
    chosen = os.environ.get("PULUMI_HOME")
    return (Path(chosen) if chosen else Path.home() / ".pulumi") / "plugins"


def here(plugin: Plugin) -> bool:
    """Whether the engine has it, whole: a `.partial` file beside it means a download that broke off."""
    folder = home() / f"resource-{plugin.name}-v{plugin.version}"
    return (folder / f"pulumi-resource-{plugin.name}").is_file() and not folder.with_name(
        folder.name + ".partial"
    ).exists()


def ensure(engine: Engine, plugin: Plugin, say: Say) -> None:
    """Have the engine's plugin here. Tells `say` where it comes from. Raises MissingTool."""
    if here(plugin):
        return
    problem = ""
    for source, arguments in _sources(plugin):
        say(f"getting the plugin {plugin.name} {plugin.version} from {source}")
        problem = _install(engine, plugin, arguments)
        if here(plugin):
            return
        say(f"that doesn't work: {problem}")
    raise MissingTool(
        f"the engine's plugin {plugin.name} {plugin.version} isn't here and couldn't be got: {problem}",
        f"Fetch {plugin.file} from {plugin.page} and run: {engine.path} plugin install resource {plugin.name}"
        f" v{plugin.version} --file {plugin.file} (or set {SETTING} to the file, to a folder with it, or to a mirror's"
        " URL).",
    )


def _sources(plugin: Plugin) -> list[tuple[str, list[str]]]:
    """Where to look, in words and as arguments: what the user names, and only without that the plugin's own server."""
    named = os.environ.get(SETTING, "")
    if named.startswith(("http://", "https://")):
        return [(named, ["--server", named])]
    if named:
        path = Path(named)
        files = [path / plugin.file, path / f"pulumi-resource-{plugin.name}"] if path.is_dir() else [path]
        return [(str(file), ["--file", str(file)]) for file in files if file.is_file()] or [
            (f"{path}, which has no {plugin.file}", ["--file", str(path / plugin.file)])
        ]
    return [(plugin.page, ["--server", plugin.server] if plugin.server else [])]


def _install(engine: Engine, plugin: Plugin, arguments: list[str]) -> str:
    """Have the engine install a plugin; what it says where it fails, else empty."""
    argv = [str(engine.path), "--non-interactive", "plugin", "install", "resource", plugin.name, f"v{plugin.version}"]
    more = {"PULUMI_PLUGIN_DOWNLOAD_URL_OVERRIDES": OVERRIDES}
    try:
        done = subprocess.run(
            [*argv, *arguments], env=environment(engine, more, None), stdin=subprocess.DEVNULL, capture_output=True,
            text=True, errors="replace", timeout=FETCH_WITHIN_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"not done within {FETCH_WITHIN_S:.0f} s"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return "" if done.returncode == 0 else (lines[-1] if lines else f"exit status {done.returncode}")
