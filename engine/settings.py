"""The operator's settings: the only place that reads the environment (`CLOUDCODE_*`)."""

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from engine.addresses import NAT64_LENGTHS, split_denied
from engine.errors import Invalid


class Settings(BaseSettings):
    """Read once at start and frozen. Every field: what, unit, why the default."""

    model_config = SettingsConfigDict(
        env_prefix="CLOUDCODE_", env_ignore_empty=True, frozen=True, extra="ignore"
    )

    host: str = Field("127.0.0.1", description="Address to listen on; local until you say else.")
    port: int = Field(8700, ge=0, le=65535, description="TCP port; 0 takes a free one.")
    data_dir: Path = Field(
        Path("cloudcode-data"), description="Directory of the embedded database and the key file."
    )
    database_url: str = Field(
        "", description="SQLAlchemy URL; empty: SQLite in data_dir, nothing else to install."
    )
    redis_url: SecretStr | None = Field(
        None,
        description="Redis for tickets to `cloudcode worker` nodes (redis://host:6379/0); needs "
        "PostgreSQL. Empty: this process runs what is queued itself.",
    )
    lease_seconds: float = Field(
        15,
        ge=1,
        le=600,
        description="Seconds a node may be silent before others take over what it had; longer than "
        "any pause of a healthy machine.",
    )
    public_url: str = Field(
        "",
        description="Where the world reaches the engine (https://cloud.example.com), for providers "
        "that call back; empty: they are not told to.",
    )
    admin_key: SecretStr | None = Field(
        None,
        description="Admin API key to use; empty: the first start makes one and prints it once.",
    )
    master_key: SecretStr | None = Field(
        None, description="Base64 of 32 bytes that seal secrets; empty: a 0600 file in data_dir."
    )
    master_key_old: SecretStr | None = Field(
        None,
        description="Further master keys, comma-separated, that open and never seal: the one "
        "before, or the next one, while the key is changed.",
    )
    egress_allow: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        (), description="CIDRs, comma-separated, that guests may reach although they are private."
    )
    egress_deny: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Addresses and CIDRs (of all ports), and hosts (host, host:port, "
        "*.example.com), comma-separated, that nobody may reach, whatever else allows it.",
    )
    egress_nat64: Annotated[tuple[IPv6Network, ...], NoDecode] = Field(
        (),
        description="Prefixes of this network's own NAT64, comma-separated: what they lead to is "
        "checked as the IPv4 address that it is. 64:ff9b::/96 is known.",
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
    memory_budget_mb: int = Field(
        0,
        ge=0,
        description="MB that all cells of this node may hold; above it idle ones are ended, the "
        "least recently used first. If that is not enough, the largest working one is ended, and "
        "its runs start again. 0: 70 % of the machine's, or of the container's.",
    )
    project_concurrency: int = Field(
        1_000,
        ge=0,
        description="Runs of one project in cells of this node at a time; others wait. 0: no "
        "limit. A project may be given another one, as for all `project_*`.",
    )
    project_queued: int = Field(
        1_000_000,
        ge=0,
        description="Runs of one project that may wait in the queue; more are refused with 429. "
        "0: no limit.",
    )
    project_cpu_seconds_per_minute: float = Field(
        0,
        ge=0,
        le=1_000_000_000,
        description="CPU seconds that one project's runs may use in a minute; 0: no limit.",
    )
    project_cpu_seconds_per_month: float = Field(
        0,
        ge=0,
        le=1_000_000_000,
        description="... and in a calendar month, UTC; 0: no limit.",
    )
    project_key_requests_per_minute: int = Field(
        0, ge=0, description="Requests of one API key a minute to this node; 0: no limit."
    )
    project_device_requests_per_minute: int = Field(
        6_000, ge=0, description="Requests of one device a minute to this node; 0: no limit."
    )
    retention_executions_days: int = Field(
        30,
        ge=0,
        le=36_500,
        description="Days that runs are kept, and the events with their input; 0: for ever. A "
        "project may say else, as for all of these.",
    )
    retention_logs_days: int = Field(
        14,
        ge=0,
        le=36_500,
        description="Days that the logs of runs are kept; 0: as long as the runs.",
    )
    retention_values_days: int = Field(
        0,
        ge=0,
        le=36_500,
        description="Days that devices' values are kept, by their datetime; 0: for ever, for they "
        "are what it is all for.",
    )
    retention_jobs_days: int = Field(
        30,
        ge=0,
        le=36_500,
        description="Days that jobs are kept once they have ended; 0: for ever.",
    )
    retention_dead_letters_days: int = Field(
        90,
        ge=0,
        le=36_500,
        description="Days that dead letters are kept; 0: for ever. Long, for somebody has to look "
        "at them.",
    )
    retention_deliveries_days: int = Field(
        30,
        ge=0,
        le=36_500,
        description="Days that deliveries are kept once they have ended; 0: for ever.",
    )
    retention_schedule_fires_days: int = Field(
        30,
        ge=0,
        le=36_500,
        description="Days that is kept when schedules fired; 0: for ever.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line that is written to stderr."
    )

    @field_validator("egress_allow", "egress_deny", "egress_nat64", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("egress_deny")
    @classmethod
    def _check_denied(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            split_denied(value)
        except Invalid as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("egress_nat64")
    @classmethod
    def _check_prefixes(cls, value: tuple[IPv6Network, ...]) -> tuple[IPv6Network, ...]:
        if any(prefix.prefixlen not in NAT64_LENGTHS for prefix in value):
            raise ValueError(f"a prefix of NAT64 has one of the lengths {NAT64_LENGTHS}")
        return value

    @field_validator("public_url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        parts = urlsplit(value)
        plain = parts.scheme in ("http", "https") and parts.hostname
        if value and (not plain or parts.query or parts.fragment or "@" in parts.netloc):
            raise ValueError("must be an absolute http or https URL without user, query or #")
        return value.rstrip("/")

    def database(self) -> str:
        """Return the SQLAlchemy URL in force."""
        return self.database_url or f"sqlite:///{self.data_dir.resolve() / 'engine.db'}"
