"""`cloudcode serve`: every field of `Settings` as an option, then the engine in this process.

Path:   the command line -> Settings (over the environment, over the defaults) -> engine.serve.run
"""

import inspect
from typing import Annotated, Any, Final, Literal

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from engine.cli.failures import Failure, Misused
from engine.cli.session import Session
from engine.errors import EngineError
from engine.settings import Settings

WORKER_PORT: Final = 8701  # for /healthz, /readyz and /metrics


def serve(session: Session, **given: str | None) -> None:
    """Run the engine here, until Ctrl-C; the first start prints the admin key once."""
    del session
    _run(settings_from(given), "serve")


def worker(session: Session, **given: str | None) -> None:
    """Run what is queued, beside others: a node without an API. Needs PostgreSQL and Redis."""
    del session
    _run(settings_from({**given, "port": given["port"] or str(WORKER_PORT)}), "worker")


def _run(settings: Settings, kind: Literal["serve", "worker"]) -> None:
    from engine.serve import run  # the whole engine: only these verbs need it
    from sandbox.supervisor import LayersMissing, SandboxError

    try:
        run(settings, kind)
    except EngineError as error:
        raise Failure(str(error)) from error
    except LayersMissing as error:
        lines = "".join(
            f"\n  {one.name}: {one.detail}. Remedy: {one.remedy}" for one in error.missing
        )
        raise Failure(
            f"cannot start with --isolation-required strict; layers that are missing:{lines}",
            remedy="`cloudcode doctor` tries each",
        ) from error
    except SandboxError as error:
        raise Failure(
            f"cannot start: {error}", remedy="`cloudcode doctor` tries each layer of the lockdown"
        ) from error
    except OSError as error:
        raise Failure(
            f"cannot start on {settings.host}:{settings.port}: {error.strerror or error}",
            remedy="`cloudcode doctor` looks for the reason; --port 0 takes a free port",
        ) from error


def settings_from(given: dict[str, str | None]) -> Settings:
    """Return the settings in force: what was given, else the environment, else the defaults.

    Raises:
        Misused: names each option that is wrong, and why.
    """
    named: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    try:
        return Settings(**named)
    except ValidationError as error:
        wrong = [
            f"{flag(name) if (name := str(part['loc'][0])) in named else variable(name)}: "
            + part["msg"].removeprefix("Value error, ")
            for part in error.errors()
        ]
        raise Misused("; ".join(wrong), remedy="`cloudcode serve --help` shows each one") from None


def flag(field: str) -> str:
    """Return a field's option: `data_dir` -> `--data-dir`."""
    return "--" + field.replace("_", "-")


def variable(field: str) -> str:
    """Return a field's variable of the environment: `data_dir` -> `CLOUDCODE_DATA_DIR`."""
    return f"{Settings.model_config.get('env_prefix', '')}{field}".upper()


def options(*only: str) -> list[inspect.Parameter]:
    """Return the fields of `Settings` as Typer parameters: all, or those named."""
    fields = Settings.model_fields
    return [_option(name, fields[name]) for name in only or fields]


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    named = variable(name)
    secret = "SecretStr" in str(field.annotation)
    default = "" if field.default in (None, "", ()) else f" [default: {field.default}]"
    warning = f" Seen in the process list: prefer {named}." if secret else f" [{named}]"
    help_text = (field.description or f"As {named}.").rstrip() + warning + default
    option = typer.Option(
        flag(name), help=help_text.replace("[", r"\["), metavar="TEXT", show_default=False
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[str | None, option],
    )
