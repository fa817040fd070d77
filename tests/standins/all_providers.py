"""The stand-ins of all connectors, by kind: each file in `providers/` has one class `StandIn`."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from tests.standins.provider import Provider

_FILES = sorted((Path(__file__).parent / "providers").glob("[a-z]*.py"))
ALL: Mapping[str, type[Provider]] = {
    path.stem: import_module(f"tests.standins.providers.{path.stem}").StandIn for path in _FILES
}
