"""The providers that a function can send to, by kind. One more: its file, and a line here."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from engine.connectors.apprise import Apprise
from engine.connectors.contract import Connector
from engine.connectors.mail import Mail
from engine.connectors.mailchimp import Mailchimp
from engine.connectors.sendgrid import SendGrid
from engine.connectors.slack import Slack
from engine.connectors.telegram import Telegram
from engine.connectors.twilio import Twilio
from engine.connectors.webhook import Webhook

_ALL: Final[tuple[Connector, ...]] = (
    Apprise(),
    Mail(),
    Mailchimp(),
    SendGrid(),
    Slack(),
    Twilio(),
    Telegram(),
    Webhook(),
)
CONNECTORS: Final[Mapping[str, Connector]] = MappingProxyType(
    {connector.kind: connector for connector in _ALL}
)
