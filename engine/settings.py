"""The operator's settings: the only place that reads the environment (`CLOUDCODE_*`)."""

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Settings(BaseSettings):
    """Read once at start and frozen. Every field: what, unit, why the default."""

    model_config = SettingsConfigDict(env_prefix="CLOUDCODE_", frozen=True, extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on; local until you say else.")
    port: int = Field(8700, ge=0, le=65535, description="TCP port; 0 takes a free one.")
    data_dir: Path = Field(
        Path("cloudcode-data"), description="Directory of the embedded database and the key file."
    )
    database_url: str = Field(
        "", description="SQLAlchemy URL; empty: SQLite in data_dir, nothing else to install."
    )
    admin_key: SecretStr | None = Field(
        None,
        description="Admin API key to use; empty: the first start makes one and prints it once.",
    )
    master_key: SecretStr | None = Field(
        None, description="Base64 of 32 bytes that seal secrets; empty: a 0600 file in data_dir."
    )
    egress_allow: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        (), description="CIDRs, comma-separated, that guests may reach although they are private."
    )
    isolation_required: Literal["strict", "best_effort"] = Field(
        "best_effort",
        description="strict: refuse to start when a layer of the lockdown is missing.",
    )
    warm_cells: int = Field(
        2,
        ge=0,
        le=64,
        description="Blank cells kept ready, of each language in use; 2 hides a start from two new "
        "projects.",
    )
    cells_max: int = Field(
        64,
        ge=1,
        le=4096,
        description="Most cells on this node; the least recently used goes first.",
    )
    cell_memory_mb: int = Field(
        512, ge=64, le=8192, description="Memory a cell may take on top of its size when ready."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line that is written to stderr."
    )

    @field_validator("egress_allow", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    def database(self) -> str:
        """Return the SQLAlchemy URL in force."""
        return self.database_url or f"sqlite:///{self.data_dir.resolve() / 'engine.db'}"
