"""`cloudcode devices` and `cloudcode products`: the things, and what they measured."""

import json
from typing import Annotated, Any

import typer

from engine.cli.client import segment
from engine.cli.failures import Misused
from engine.cli.session import Session

Device = Annotated[str, typer.Argument(help="The device's id.")]
Limit = Annotated[int, typer.Option(help="How many at most, the newest first.", min=1)]


def products_list(session: Session, limit: Limit = 50) -> None:
    """List the products: the kinds of device."""
    products = session.client.items("/v1/products", count_max=limit)
    session.screen.rows(products, ("id", "name", "created_at"))


def products_add(
    session: Session, name: Annotated[str, typer.Argument(help="The product's name.")]
) -> None:
    """Make a product: a kind of device, which triggers are bound to."""
    session.screen.record(session.client.post("/v1/products", {"name": name}))


def devices_list(
    session: Session,
    *,
    product: Annotated[str, typer.Option(help="Only this product's: id or name.")] = "",
    limit: Limit = 50,
) -> None:
    """List devices."""
    devices = session.client.items("/v1/devices", count_max=limit, product=product)
    session.screen.rows(devices, ("id", "name", "product", "timezone", "tags", "token"))


def devices_add(
    session: Session,
    *,
    name: Annotated[str, typer.Argument(help="The device's name.")],
    product: Annotated[str, typer.Option(help="What kind of device: id or name.")],
    timezone: Annotated[str, typer.Option(help="IANA name.")] = "UTC",
    tag: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None,
) -> None:
    """Make a device and print the token that it writes with."""
    body = {"name": name, "product": product, "timezone": timezone, "tags": tag or []}
    session.screen.record(session.client.post("/v1/devices", body))


def devices_write(
    session: Session,
    *,
    device: Device,
    values: Annotated[list[str], typer.Argument(help="KEY=VALUE; the value as JSON, or as text.")],
    at: Annotated[str, typer.Option(help="When it was measured, ISO 8601; else now.")] = "",
) -> None:
    """Write values as the device would; its triggers run."""
    body = {"values": [_value(pair, at) for pair in values]}
    done = session.client.post(f"/v1/devices/{segment(device)}/values", body)
    session.screen.record(done)


def devices_read(
    session: Session,
    *,
    device: Device,
    resource: Annotated[str, typer.Argument(help="A value's key; left out: list the keys.")] = "",
    start: Annotated[str, typer.Option(help="The earliest, ISO 8601.")] = "",
    end: Annotated[str, typer.Option(help="The latest, ISO 8601.")] = "",
    limit: Limit = 50,
) -> None:
    """Show what a device has stored, newest first."""
    path = f"/v1/devices/{segment(device)}"
    if not resource:
        keys = session.client.items(f"{path}/resources", count_max=limit)
        session.screen.rows(keys, ("key",))
        return
    values = session.client.items(
        f"{path}/values", count_max=limit, key=resource, start=start, end=end
    )
    session.screen.rows(values, ("datetime", "key", "value", "geo"))


def _value(pair: str, at: str) -> dict[str, Any]:
    key, equals, text = pair.partition("=")
    if not equals or not key:
        raise Misused(f"{pair!r} is not KEY=VALUE", remedy="for example: temp=21.5")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return {"key": key, "value": value, **({"datetime": at} if at else {})}
