"""Packages that only some commands need: named where they are missing, instead of a traceback."""

from importlib.util import find_spec

from trainer.errors import MissingPackage


def need(purpose: str, extra: str, *modules: str) -> None:
    """Raises MissingPackage, which says what is to be installed, where one of these modules isn't there."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        packages = " and ".join(missing)
        raise MissingPackage(f"{purpose} needs {packages}", f"pip install 'orchestrate[{extra}]'")
