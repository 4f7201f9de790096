"""The settings of this peer, as typed values: the only reader of the environment and of the config file.

`load` takes the flags and the environment and answers a `Loaded`: the `Config`, where each value came from, and what a
person should be warned about. It decides nothing else and writes nothing. The table of settings is `mesh.settings`.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
import tomllib
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from mesh.errors import SettingError
from mesh.secret import Secret
from mesh.settings import BY_NAME, SETTINGS, Setting

PLACEHOLDER_KEY = "loopback-needs-no-key"
"""What `llm-router env` prints as OPENAI_API_KEY: clients insist on one. Read back, it is no key for a cloud."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every setting, parsed. Durations in seconds, sizes in bytes, paths absolute with `~` expanded; None is unset.

    A field has the name of its setting; see docs/configuration.md for meaning and range.
    """

    # Basics
    data_dir: Path
    config: Path | None
    name: str
    # Listening
    host: str
    port: int
    node_port: int | None
    bind_address: str
    open: bool
    loopback: Literal["open", "key"]
    allowed_hosts: tuple[str, ...]
    allowed_origins: tuple[str, ...]
    tls_cert: Path | None
    tls_key: Path | None
    ollama_port: int | None
    # Models and memory
    models_dir: Path
    slots: int
    context: int
    threads: int
    model_idle_timeout: float
    max_loaded_models: int
    max_memory_bytes: int | None
    auto_repair: bool
    repair_timeout_secs: float
    auto_model: str | None
    adopt: bool
    # Logs
    log_level: str
    log_format: Literal["auto", "text", "json"]
    node_log_level: str
    log_dir: Path
    log_retention_days: int
    # Mesh
    mesh_port: int | None
    url: tuple[str, ...]
    ip: str | None
    mdns: bool
    join: Secret | None
    door_minutes: int
    coordinator: Literal["prefer", "allow", "never"]
    run_dir: Path
    heartbeat_secs: float
    # Balancing
    load_balancer_mode: Literal["auto", "metrics"]
    health_check_interval: float
    node_timeout: float
    # History
    database_url: Path
    history_ack: Literal["local", "replicated"]
    history_days: int
    history_bodies: Literal["full", "metadata", "off"]
    history_max_bytes: int | None
    # Users and keys
    admin_username: str
    admin_password: Secret | None
    jwt_secret: Secret | None
    # Clouds
    openai_api_key: Secret | None
    anthropic_api_key: Secret | None
    google_api_key: Secret | None
    openai_base_url: str
    anthropic_api_base_url: str
    google_api_base_url: str
    cloud_models: tuple[str, ...]
    # Downloads and the network
    hf_token: Secret | None
    hf_base_url: str | None
    dl_max_retries: int
    dl_backoff_ms: int
    dl_concurrency: int
    dl_max_bps: int
    dl_chunk: int
    http_proxy: str | None
    https_proxy: str | None
    no_proxy: tuple[str, ...]
    # Hardware
    allow_no_gpu: bool | None
    gpu_available: bool | None
    gpu_model: str | None
    gpu_count: int | None
    # Tests
    worker: str | None

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """Every secret that is set, for the redaction of logs."""
        values = (getattr(self, setting.name) for setting in SETTINGS if setting.is_secret)
        return tuple(value for value in values if value is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a value came from: `flag --port`, `environment LLM_ROUTER_PORT`, `file /etc/x.toml`, `default`."""

    kind: Literal["flag", "environment", "file", "default"]
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A configuration, the origin of each setting by name, and lines to warn with."""

    config: Config
    origins: Mapping[str, Origin]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Given:
    text: str
    origin: Origin


def load(flags: Mapping[str, str | bool | None] | None = None, environ: Mapping[str, str] | None = None) -> Loaded:
    """Flag, else environment, else config file, else default, for every setting.

    `flags` are keyed by setting name, None for those not given. Raises SettingError.
    """
    environ = os.environ if environ is None else environ
    warnings: list[str] = []
    given = _from_flags(flags or {})
    for name, value in _from_environment(environ, warnings):
        given.setdefault(name, value)
    path = _config_path(given)
    for name, value in _from_file(path, is_required="config" in given):
        given.setdefault(name, value)
    _drop_own_address(given, environ, warnings)
    values = {setting.name: _parsed(setting, given.get(setting.name)) for setting in SETTINGS}
    _fill_defaults(values, given, environ)
    if path is not None and path.exists():
        values["config"] = path
    _check_together(values)
    origins = {name: value.origin for name, value in given.items()}
    complete = {setting.name: origins.get(setting.name, Origin(kind="default")) for setting in SETTINGS}
    return Loaded(config=Config(**values), origins=complete, warnings=tuple(warnings))


def shown(setting: Setting, value: object) -> str:
    """A value as a person may see it: secrets and passwords in addresses are `***`, unset is empty."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    if isinstance(value, float):
        return f"{value:g}"
    return "***" if setting.is_secret else _without_password(str(value))


# --- where values come from, the first wins --------------------------------------------------------------------------


def _from_flags(flags: Mapping[str, str | bool | None]) -> dict[str, _Given]:
    return {
        name: _Given(_text(value), Origin(kind="flag", name=BY_NAME[name].flag))
        for name, value in flags.items()
        if value is not None
    }


def _from_environment(environ: Mapping[str, str], warnings: list[str]) -> Iterator[tuple[str, _Given]]:
    known = {"LLM_ROUTER_TOKEN"}  # the command line's: `llm-router whoami`
    for setting in SETTINGS:
        known.update(setting.variables)
        found = [(name, text) for name in setting.variables if (text := _variable(setting, name, environ))]
        if setting.is_secret:
            known.update(name + "_FILE" for name in setting.variables)
        if not found:
            continue
        for old in (name for name, _ in found if name in setting.legacy):
            ignored = "" if old == found[0][0] else ", and is ignored because that is set too"
            warnings.append(f"{old} is an old name: use {setting.variable}{ignored}")
        name, text = found[0]
        yield setting.name, _Given(text, Origin(kind="environment", name=name))
    for name in environ:
        if name.startswith(("LLM_ROUTER_", "LLM_NODE_")) and name not in known:
            warnings.append(f"{name} is not a setting{_nearest(name, known)}")


def _variable(setting: Setting, name: str, environ: Mapping[str, str]) -> str:
    """The value of one variable, or of the file that its `_FILE` twin names; empty is unset."""
    if text := environ.get(name, "").strip():
        return text
    if not setting.is_secret or not (path := environ.get(name + "_FILE", "").strip()):
        return ""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SettingError(f"setting {setting.name}: cannot read {path} (environment {name}_FILE): {reason}") from None


def _config_path(given: Mapping[str, _Given]) -> Path | None:
    if "config" in given:
        path = _parsed(BY_NAME["config"], given["config"])
    else:
        path = _parsed(BY_NAME["data_dir"], given.get("data_dir")) / "config.toml"
    assert isinstance(path, Path)
    return path


def _from_file(path: Path | None, *, is_required: bool) -> Iterator[tuple[str, _Given]]:
    if path is None:
        return
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
            mode = os.fstat(file.fileno()).st_mode
    except FileNotFoundError:
        if is_required:
            raise SettingError(f"config file {path} does not exist") from None
        return
    except OSError as error:
        raise SettingError(f"config file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"config file {path} is not TOML: {error}") from None
    for name, value in table.items():
        setting = BY_NAME.get(name)
        if setting is None or setting.is_hidden or name == "config":
            raise SettingError(f"config file {path}: {name} is not a setting{_nearest(name, set(BY_NAME))}")
        if isinstance(value, dict):
            raise SettingError(f"config file {path}: {name} is a table; allowed is {setting.kind.allowed}")
        if setting.is_secret and os.name == "posix" and mode & 0o077:
            raise SettingError(f"config file {path} holds {name} and others may read it: run `chmod 600 {path}`")
        if text := _text(value).strip():
            yield name, _Given(text, Origin(kind="file", name=str(path)))


def _text(value: object) -> str:
    """A flag's or TOML's value in the form that the environment has, so that one parser reads all."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(_text(part) for part in value)
    return str(value)


# --- values ----------------------------------------------------------------------------------------------------------


def _parsed(setting: Setting, given: _Given | None) -> Any:
    if given is None:
        return None if setting.default is None else setting.kind.parse(setting.default)
    try:
        return setting.kind.parse(given.text)
    except (ValueError, OverflowError, RuntimeError):  # RuntimeError: `~name` of an unknown user
        _refuse(setting, given)


def _refuse(setting: Setting, given: _Given) -> NoReturn:
    text = "***" if setting.is_secret else repr(_without_password(given.text[:200]))
    raise SettingError(
        f"setting {setting.name}: {text} ({given.origin}) is not allowed; allowed is {setting.kind.allowed}"
    )


def _fill_defaults(values: dict[str, Any], given: Mapping[str, _Given], environ: Mapping[str, str]) -> None:
    """The defaults that depend on the machine or on other settings. Paths become absolute."""
    home = values["data_dir"]
    if "data_dir" in given:
        for name, folder in (("models_dir", "models"), ("log_dir", "logs")):
            if name not in given:
                values[name] = home / folder
    if values["name"] is None:
        values["name"] = socket.gethostname().split(".")[0][:63] or "peer"
    if values["database_url"] is None:
        values["database_url"] = home / "router.db"
    if values["run_dir"] is None:
        runtime = environ.get("XDG_RUNTIME_DIR", "")
        values["run_dir"] = Path(runtime) / "llm-router" if runtime else Path("~/.llm-router/run").expanduser()
    for name, value in values.items():
        if isinstance(value, Path):
            values[name] = value.absolute()


def _drop_own_address(given: dict[str, _Given], environ: Mapping[str, str], warnings: list[str]) -> None:
    """Forgets what `llm-router env` put into this shell for clients: this peer is not its own cloud."""
    key = given.get("openai_api_key")
    if key is not None and key.text == PLACEHOLDER_KEY:
        del given["openai_api_key"]
    base = given.get("openai_base_url")
    if base is None or base.origin.name != "OPENAI_BASE_URL":
        return
    port = given["port"].text if "port" in given else BY_NAME["port"].default
    url = urllib.parse.urlsplit(base.text)
    if url.hostname in ("127.0.0.1", "localhost", "::1") and url.netloc.endswith(f":{port}"):
        del given["openai_base_url"]
        warnings.append(
            f"OPENAI_BASE_URL is ignored: {base.text} is this peer; LLM_ROUTER_OPENAI_BASE_URL can name another"
        )


def _check_together(values: Mapping[str, Any]) -> None:
    for one, other in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if values[one] is not None and values[other] is None:
            raise SettingError(f"setting {one} is given without {other}: both or neither")
    if values["port"] and values["port"] == values["node_port"]:
        raise SettingError(
            f"settings port and node_port are both {values['port']}: give two ports, or leave node_port out"
        )


def _nearest(name: str, known: set[str]) -> str:
    visible = sorted(known - {BY_NAME["worker"].variable, "worker"})
    close = difflib.get_close_matches(name, visible, n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", text)
