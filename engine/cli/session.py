"""What every verb is handed, and the wrapper that makes a function a command.

Path:   app -> here -> a verb(session, ...) -> session.client -> the engine
Never:  ends a failed command with exit code 0.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, Final

import typer

from engine.cli.client import Client
from engine.cli.failures import Failure
from engine.cli.screen import Screen

Verb = Callable[..., None]
KEYWORD: Final = Parameter.KEYWORD_ONLY

AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout; messages stay on stderr.")]
Url = Annotated[str, typer.Option("--url", help="As the global option.", show_default=False)]
Key = Annotated[str, typer.Option("--key", help="As the global option.", show_default=False)]


@dataclass(frozen=True)
class Session:
    """The global options in force, and what is made of them when it is first needed."""

    url: str
    key: str = field(repr=False)
    project: str
    as_json: bool

    @cached_property
    def screen(self) -> Screen:
        return Screen(as_json=self.as_json)

    @cached_property
    def client(self) -> Client:
        return Client(self.url, self.key, self.project)

    def close(self) -> None:
        if "client" in self.__dict__:  # was needed
            self.client.close()


def command_of(verb: Verb, parameters: list[Parameter] | None = None) -> Verb:
    """Return `verb` as Typer wants it: a context for the session, global options also after it.

    Args:
        verb: takes a `Session` and then what the command line gives, by name.
        parameters: instead of the verb's own, where they are made from data; such a verb works
            on this machine and gets neither `--url` nor `--key`.
    """
    shared = [Parameter("as_json", KEYWORD, default=False, annotation=AsJson)]
    own = parameters
    if own is None:
        own = list(signature(verb).parameters.values())[1:]
        shared.append(Parameter("url", KEYWORD, default="", annotation=Url))
        if not any(part.name == "key" for part in own):  # there --key names a device's value
            shared.append(Parameter("api_key", KEYWORD, default="", annotation=Key))

    def command(
        *, context: typer.Context, as_json: bool, url: str = "", api_key: str = "", **given: Any
    ) -> None:
        top: Session = context.find_root().obj
        session = Session(
            url=url or top.url,
            key=api_key or top.key,
            project=top.project,
            as_json=as_json or top.as_json,
        )
        try:
            verb(session, **given)
        except Failure as failure:
            session.screen.failure(failure)
            raise typer.Exit(1) from None
        finally:
            session.close()

    context = Parameter("context", KEYWORD, annotation=typer.Context)
    parts = [context, *(part.replace(kind=KEYWORD) for part in own), *shared]
    command.__name__ = verb.__name__
    command.__doc__ = verb.__doc__
    command.__signature__ = Signature(parts)  # type: ignore[attr-defined]
    command.__annotations__ = {part.name: part.annotation for part in parts}
    return command
