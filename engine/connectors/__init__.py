"""The providers that a function can send to, by kind. One more: its file, and a line here."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from engine.connectors.contract import Connector
from engine.connectors.slack import Slack
from engine.connectors.webhook import Webhook

_ALL: Final[tuple[Connector, ...]] = (Slack(), Webhook())
CONNECTORS: Final[Mapping[str, Connector]] = MappingProxyType(
    {connector.kind: connector for connector in _ALL}
)
