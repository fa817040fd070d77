"""Checks what a version may reach: variables and secrets by name; hosts: see `allowed_hosts`."""

from collections.abc import Mapping, Sequence
from typing import Final

from engine.errors import Invalid
from engine.names import VARIABLE_NAME
from engine.quotas import SECRETS_MAX, VARIABLE_BYTES_MAX, VARIABLES_MAX

_NAME_RULE: Final = "must be a capital letter, then up to 63 capitals, digits or _"


def check_variables(variables: Mapping[str, str]) -> None:
    """Refuse a variable whose name or size is not allowed."""
    if len(variables) > VARIABLES_MAX:
        raise Invalid(f"at most {VARIABLES_MAX} variables, not {len(variables)}", "/variables")
    for name, value in variables.items():
        if not VARIABLE_NAME.fullmatch(name):
            raise Invalid(f"{name[:80]!r} {_NAME_RULE}", "/variables")
        used = len(value.encode())
        if used > VARIABLE_BYTES_MAX:
            raise Invalid(
                f"has {used} bytes; at most {VARIABLE_BYTES_MAX} are allowed", f"/variables/{name}"
            )


def check_secret_names(names: Sequence[str], variables: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names, each once; refuse those that are none, or are variables too."""
    if len(names) > SECRETS_MAX:
        raise Invalid(f"at most {SECRETS_MAX} secrets, not {len(names)}", "/secrets")
    for position, name in enumerate(names):
        if not VARIABLE_NAME.fullmatch(name):
            raise Invalid(f"{name[:80]!r} {_NAME_RULE}", f"/secrets/{position}")
        if name in variables:
            raise Invalid(f"{name} is a variable already", f"/secrets/{position}")
    return tuple(dict.fromkeys(names))
