"""Every setting, read once. Only the composition roots (`main`, `cli`) import this module; all others are given values.

But for `OpenAILike`, which has no root above it in a script, and reads `ModelSettings` for what it is not given.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from dotenv import dotenv_values
from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.errors import SettingsError

S = TypeVar("S", bound=BaseSettings)
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
MODELS_FILE = Path("models.toml")
MCP_FILE = Path("mcp.toml")


def checked_address(value: str | None) -> str | None:
    """An address without the slash at its end."""
    if value and not value.startswith(("http://", "https://")):
        raise ValueError("must start with http:// or https://")
    return value.rstrip("/") if value else value


class ModelSettings(BaseSettings):
    """The OpenAI-compatible server that is asked where nothing else is said."""

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    openai_api_key: SecretStr | None = Field(None, description="the key of the OpenAI-compatible server")
    openai_base_url: str | None = Field(
        None,
        validation_alias=AliasChoices("OPENAI_BASE_URL", "OPENAI_API_BASE"),
        description="the address of the OpenAI-compatible server; also read as `OPENAI_API_BASE`",
    )
    openai_model: str = Field("gpt-4o-mini", description="the model asked for when an agent or session names none")

    @field_validator("openai_base_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        return checked_address(value)


class Settings(ModelSettings):
    """What an operator can set, by environment variable or in `.env`. Names are the field names in capitals."""

    database_url: SecretStr | None = Field(None, description="PostgreSQL 15 or newer; without it one is started here")
    database_direct_url: SecretStr | None = Field(
        None,
        description="the same database past a transaction pooler, for migrations and jobs; `DATABASE_URL` by default",
    )
    redis_url: SecretStr | None = Field(None, description="Redis 7 or Valkey; without it one is started here")
    data_dir: Path = Field(Path("data"), description="where the embedded servers, the first key and files are kept")
    agents_dir: Path = Field(Path("agents"), description="the folder of agent files")
    host: str = Field("127.0.0.1", description="the address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="the port to listen on; 0 takes a free one")
    workers: int = Field(1, ge=1, le=64, description="server processes")
    public_url: str | None = Field(
        None, description="the address that others have of this server; `/mcp` is served under its host name"
    )
    trusted_proxies: str = Field(
        "", description="addresses or networks, with commas, whose `X-Forwarded-For` is believed"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="web origins, with commas, that may call the API"
    )
    auth: Literal["keys", "open"] = Field("keys", description="`open` asks for no key, on the loopback address only")
    admin_api_key: SecretStr | None = Field(None, description="the first administrator's key, at least 32 characters")
    admin_reads_chats: bool = Field(
        False, description="whether administrators may read what others said; that they did is in the audit log"
    )
    secret_key: SecretStr | None = Field(
        None, description="names cached answers, at least 32 characters; the same for all servers of one database"
    )
    models_file: Path = Field(MODELS_FILE, description="the file of language models, where there is one")
    mcp_file: Path = Field(MCP_FILE, description="the file of MCP servers whose tools agents use, where there is one")
    minio_endpoint: str | None = Field(
        None, description="the S3 or MinIO server that keeps files, as `HOST:PORT` or a URL; without it `DATA_DIR` does"
    )
    minio_access_key: SecretStr | None = Field(None, description="its access key")
    minio_secret_key: SecretStr | None = Field(None, description="its secret key")
    minio_bucket: str = Field("chattable", description="the bucket for files, made when it is missing")
    milvus_host: str | None = Field(
        None, description="the Milvus server that searches knowledge, by the extra `milvus`; without it pgvector does"
    )
    milvus_port: int = Field(19530, ge=1, le=65535, description="its port")
    file_max_bytes: int = Field(
        512_000_000, ge=1, le=50_000_000_000, description="the largest file that is taken, in bytes"
    )
    user_max_files: int = Field(10_000, ge=0, le=1_000_000, description="how many files a user may keep")
    user_max_file_bytes: int = Field(
        10_000_000_000, ge=0, le=10**15, description="how many bytes of files a user may keep"
    )
    user_max_passages: int = Field(
        20_000, ge=0, le=1_000_000, description="how many passages of knowledge agents may keep for a user"
    )
    step_days: Annotated[dict[str, Annotated[int, Field(ge=1, le=36_500)]], NoDecode] = Field(
        {}, description="days for which steps are kept, by kind, as `prompt:7,llm:90,*:365`; without it for ever"
    )
    run_timeout: float = Field(600, gt=0, le=86400, description="seconds an agent may take for one answer")
    sandbox: bool = Field(False, description="whether agents may run code, by the extra `sandbox`")
    jobs: int = Field(
        10, ge=0, le=1000, description="jobs a server process does at once; 0 leaves them to `chattable worker`"
    )
    requests_per_minute: int = Field(
        0, ge=0, le=1_000_000, description="requests a user may make in a minute; 0 is no limit"
    )
    oidc_issuer: str | None = Field(
        None, description="the OpenID Connect provider that people may log in by; `PUBLIC_URL` must be set too"
    )
    oidc_client_id: str | None = Field(None, description="the name this server has there")
    oidc_client_secret: SecretStr | None = Field(None, description="its secret there")
    oidc_groups_claim: str = Field("groups", description="the claim that names a user's groups")
    oidc_admin_group: str | None = Field(None, description="the group there whose members are administrators here")
    metrics_key: SecretStr | None = Field(
        None, description="a key that reads `/metrics` and nothing else, at least 32 characters"
    )
    webhooks_private: bool = Field(False, description="whether webhooks may be sent to addresses that are not public")
    otel_exporter_otlp_endpoint: str | None = Field(
        None, description="the OpenTelemetry receiver that is sent the steps of runs, by the extra `otel`"
    )
    otel_exporter_otlp_headers: SecretStr | None = Field(
        None, description="headers for it, with commas, in the form of W3C Baggage"
    )
    otel_service_name: str = Field("chattable", description="the name this platform has there")
    otel_instrumentation_genai_capture_message_content: bool = Field(
        False, description="whether it is sent what was said, too"
    )
    session_days: int = Field(
        0, ge=0, le=36_500, description="days after which a session that is not used is erased; 0 keeps it"
    )
    audit_days: int = Field(
        365, ge=0, le=36_500, description="days for which the acts of administrators are kept; 0 keeps them for ever"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="how much is logged")
    log_format: Literal["text", "json"] = Field("text", description="`json` logs one object a line")

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("step_days", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return {
            kind.strip(): days.strip() for kind, _, days in (part.partition(":") for part in value.split(",") if part)
        }

    @field_validator("trusted_proxies")
    @classmethod
    def _addresses(cls, value: str) -> str:
        for part in filter(None, (part.strip() for part in value.split(","))):
            try:
                if part != "*":
                    ip_network(part)
            except ValueError:
                raise ValueError(
                    "must be IP addresses or networks such as 10.0.0.5 or 10.0.0.0/8, with commas, or * for all"
                ) from None
        return value

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("admin_api_key", "secret_key", "metrics_key")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value and len(value.get_secret_value()) < 32:
            raise ValueError("must have at least 32 characters")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value and not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return value

    @field_validator("public_url", "otel_exporter_otlp_endpoint")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        return checked_address(value)

    @field_validator("otel_exporter_otlp_headers")
    @classmethod
    def _headers(cls, value: SecretStr | None) -> SecretStr | None:
        if value and not all("=" in part for part in value.get_secret_value().split(",") if part.strip()):
            raise ValueError("must be name=value, with commas between them")
        return value

    @field_validator("oidc_issuer")
    @classmethod
    def _issuer(cls, value: str | None) -> str | None:
        checked_address(value)
        return value  # whose end is a part of it

    @field_validator("models_file", "mcp_file")
    @classmethod
    def _there(cls, value: Path) -> Path:
        if value not in (MODELS_FILE, MCP_FILE) and not value.is_file():
            raise ValueError("there is no such file")
        return value

    @model_validator(mode="after")
    def _provider_is_whole(self) -> Settings:
        given = {
            name: getattr(self, name) for name in ("oidc_issuer", "oidc_client_id", "oidc_client_secret", "public_url")
        }
        missing = [name.upper() for name, value in given.items() if not value]
        if missing and any(given[name] for name in ("oidc_issuer", "oidc_client_id", "oidc_client_secret")):
            raise ValueError(f"{missing[0]} is not set: OIDC_* and PUBLIC_URL go together")
        return self

    @model_validator(mode="after")
    def _store_is_whole(self) -> Settings:
        given = {name: getattr(self, name) for name in ("minio_endpoint", "minio_access_key", "minio_secret_key")}
        missing = [name.upper() for name, value in given.items() if not value]
        if 0 < len(missing) < len(given):
            raise ValueError(
                f"{missing[0]} is not set: MINIO_ENDPOINT, MINIO_ACCESS_KEY and MINIO_SECRET_KEY go together"
            )
        return self

    @model_validator(mode="after")
    def _open_stays_local(self) -> Settings:
        if self.auth == "open" and self.host not in LOOPBACK:
            raise ValueError("AUTH=open serves the loopback address only: set HOST to 127.0.0.1, or AUTH to keys")
        return self

    @property
    def llm_is_configured(self) -> bool:
        """Whether an upstream for language models is known: a key (for api.openai.com), an address, or a file of models."""
        configured = self.openai_api_key is not None or self.openai_base_url is not None
        return configured or self.models_file.is_file()


def load(**overrides: Any) -> Settings:
    """The settings of this process, or a `SettingsError` whose sentences name each wrong one."""
    return _read(Settings, overrides)


def model_settings() -> ModelSettings:
    """Those of the OpenAI-compatible server alone; a `SettingsError` as by `load`."""
    return _read(ModelSettings, {})


def _read(kind: type[S], overrides: Mapping[str, Any]) -> S:
    try:
        return kind(**overrides)
    except ValidationError as error:
        raise SettingsError("\n".join(_sentence(problem) for problem in error.errors(include_url=False))) from None


def _sentence(problem: Any) -> str:
    """What is wrong in our words; a validator's of pydantic's own would name its types."""
    name = str(problem["loc"][0]).upper() if problem["loc"] else ""
    text = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] != "value_error":
        text = f"must be {_allowed(name)}"
    return f"{name}: {text}." if name else f"{text}."


def _allowed(name: str) -> str:
    """What a setting may be, as its type and its bounds have it."""
    field = next(field for key, field in Settings.model_fields.items() if name in (key.upper(), *_aliases(field)))
    choices = get_args(field.annotation)
    if choices and all(isinstance(choice, str) for choice in choices):
        return f"{', '.join(choices[:-1])} or {choices[-1]}"
    if field.annotation not in (int, float):
        return "text"
    bounds = {
        kind: getattr(rule, kind) for rule in field.metadata for kind in ("ge", "gt", "le") if hasattr(rule, kind)
    }
    least = f"from {bounds['ge']} to" if "ge" in bounds else f"above {bounds['gt']} and up to"
    return f"a {'whole ' if field.annotation is int else ''}number {least} {bounds['le']}"


def _aliases(field: Any) -> list[str]:
    alias = field.validation_alias
    return [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else []


def variables() -> dict[str, str]:
    """Every variable that has a value, of the environment or else of `.env`: keys are looked up here by their names."""
    found = {**dotenv_values(".env"), **os.environ}  # noqa: TID251 - its one home
    return {key: value for key, value in found.items() if value}


def sources() -> dict[str, str]:
    """Where each setting has its value from: the environment, `.env`, or its default."""
    env = {key.upper() for key, value in os.environ.items() if value}  # noqa: TID251 - its one home
    file = {key.upper() for key, value in dotenv_values(".env").items() if value}
    found = {}
    for key, field in Settings.model_fields.items():
        names = {key.upper(), *_aliases(field)}
        found[key.upper()] = "environment" if names & env else ".env" if names & file else "default"
    return found


def strangers() -> list[str]:
    """Names in `.env` that are no setting, of no agent, and hold no key of a model: misspelt, most likely."""
    known = {name for key, field in Settings.model_fields.items() for name in (key.upper(), *_aliases(field))}
    names = (name for name in dotenv_values(".env") if name.upper() not in known)
    return sorted(name for name in names if not name.startswith("AGENT_") and not name.endswith(("_KEY", "_TOKEN")))


def agent_variables() -> dict[str, str]:
    """The operator's settings of agents: every variable `AGENT_<ID>_<FIELD>`."""
    return {key: value for key, value in variables().items() if key.startswith("AGENT_")}
