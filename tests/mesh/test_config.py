"""Reading the settings: which source wins, what is refused and in which words, what depends on what."""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mesh.config import PLACEHOLDER_KEY, Config, Loaded, load, shown
from mesh.errors import SettingError
from mesh.secret import Secret
from mesh.settings import BY_NAME, SETTINGS, Setting

Read = Callable[..., Loaded]

# A value that every kind of setting takes and that is not its default, with what it becomes where that differs.
SAMPLES: dict[str, str] = {
    "data_dir": "/d",
    "name": "attic",
    "host": "127.0.0.1",
    "port": "9000",
    "bind_address": "10.0.0.1",
    "models_dir": "/m",
    "model_idle_timeout": "12",
    "max_loaded_models": "3",
    "max_memory_bytes": "8GB",
    "node_log_level": "debug",
    "heartbeat_secs": "5",
    "health_check_interval": "31",
    "node_timeout": "61",
    "load_balancer_mode": "metrics",
    "database_url": "sqlite:///h.db",
    "admin_username": "root",
    "admin_password": "hunter22",
    "allow_no_gpu": "false",
    "url": "tower:8081",
    "openai_api_key": "sk-abc",
    "anthropic_api_key": "sk-abc",
    "google_api_key": "sk-abc",
    "openai_base_url": "http://cloud.test",
    "anthropic_api_base_url": "http://cloud.test",
    "google_api_base_url": "http://cloud.test",
    "http_proxy": "http://proxy.test:3128",
    "https_proxy": "http://proxy.test:3128",
    "no_proxy": "a.test",
}


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads with an empty home, so that no file of this machine plays a part."""

    def read(
        flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None, toml: str = ""
    ) -> Loaded:
        given = {"data_dir": str(tmp_path)} | dict(flags or {})
        if toml:
            (tmp_path / "config.toml").write_text(toml, encoding="utf-8")
            (tmp_path / "config.toml").chmod(0o600)
        return load(given, environ or {})

    return read


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(read: Read) -> None:
    """F17-F53: flag > environment > config file > default."""
    sources: list[dict[str, Any]] = [
        {},
        {"toml": "port = 1001"},
        {"toml": "port = 1001", "environ": {"LLM_ROUTER_PORT": "1002"}},
        {"toml": "port = 1001", "environ": {"LLM_ROUTER_PORT": "1002"}, "flags": {"port": "1003"}},
    ]
    loaded = [read(**source) for source in sources]
    assert [one.config.port for one in loaded] == [8080, 1001, 1002, 1003]
    assert [one.origins["port"].kind for one in loaded] == ["default", "file", "environment", "flag"]
    assert str(loaded[2].origins["port"]) == "environment LLM_ROUTER_PORT"
    assert str(loaded[3].origins["port"]) == "flag --port"


@pytest.mark.parametrize(
    ("setting", "old"),
    [(setting, old) for setting in SETTINGS for old in setting.legacy],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_old_name_works_with_a_warning_that_names_the_new_one(setting: Setting, old: str) -> None:
    """F30-31, F53: legacy names still work; the new one wins."""
    loaded = load({}, {old: SAMPLES[setting.name]})
    assert getattr(loaded.config, setting.name) == setting.kind.parse(SAMPLES[setting.name])
    assert str(loaded.origins[setting.name]) == f"environment {old}"
    assert loaded.warnings == (f"{old} is an old name: use {setting.variable}",)

    both = load({}, {old: "not even valid, and not read", setting.variable: SAMPLES[setting.name]})
    assert getattr(both.config, setting.name) == setting.kind.parse(SAMPLES[setting.name])
    assert str(both.origins[setting.name]) == f"environment {setting.variable}"
    assert setting.variable in both.warnings[0] and "ignored" in both.warnings[0]


@pytest.mark.parametrize(
    ("setting", "other"),
    [(setting, other) for setting in SETTINGS for other in setting.also],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_equal_name_works_without_a_warning_and_the_main_one_wins(setting: Setting, other: str) -> None:
    """F26-29, F37, F110: OPENAI_API_KEY and the like, with `LLM_ROUTER_` in front wins."""
    sample = SAMPLES[setting.name]
    loaded = load({}, {other: sample})
    assert getattr(loaded.config, setting.name) == setting.kind.parse(sample)
    assert loaded.warnings == ()
    if os.name != "nt" or other.lower() != setting.variable.lower():
        assert str(load({}, {other: "x://", setting.variable: sample}).origins[setting.name]).endswith(setting.variable)


def test_a_value_that_cannot_be_parsed_is_one_line_with_value_origin_and_what_is_allowed(read: Read) -> None:
    """F17-F53: a setting that cannot be parsed stops the start with one line."""
    with pytest.raises(SettingError) as flag:
        read({"port": "eighty"})
    assert str(flag.value) == (
        "setting port: 'eighty' (flag --port) is not allowed; allowed is a whole number, 0 to 65535 (0: any free one)"
    )
    with pytest.raises(
        SettingError, match=r"^setting host: 'a b' \(environment ROUTER_HOST\) is not allowed; allowed is"
    ):
        read(environ={"ROUTER_HOST": "a b"})
    with pytest.raises(
        SettingError, match=r"^setting mdns: '3' \(file .*config\.toml\) is not allowed; allowed is true"
    ):
        read(toml="mdns = 3")
    assert flag.value.exit_code == 2


def test_a_secret_is_never_shown_in_an_error_or_a_repr(read: Read) -> None:
    with pytest.raises(SettingError) as error:
        read(environ={"LLM_ROUTER_JWT_SECRET": "plain\nsecret"})
    assert "plain" not in str(error.value) and "***" in str(error.value)

    config = read(environ={"LLM_ROUTER_JWT_SECRET": "hunter22hunter22"}).config
    assert config.jwt_secret == Secret("hunter22hunter22")
    assert "hunter22" not in repr(config) + str(config.jwt_secret) + f"{config.jwt_secret}"
    assert config.secrets == (Secret("hunter22hunter22"),)


def test_a_password_inside_an_address_is_not_shown(read: Read) -> None:
    config = read(environ={"HTTPS_PROXY": "http://me:geheim@proxy.test:3128"}).config
    assert shown(BY_NAME["https_proxy"], config.https_proxy) == "http://***@proxy.test:3128"
    with pytest.raises(SettingError) as error:
        read(environ={"HTTPS_PROXY": "ftp://me:geheim@proxy.test"})
    assert "geheim" not in str(error.value)


def test_an_empty_variable_is_unset(read: Read) -> None:
    loaded = read(environ={"LLM_ROUTER_PORT": "", "ROUTER_PORT": " ", "LLM_NODE_PORT": ""})
    assert (loaded.config.port, loaded.config.node_port, loaded.warnings) == (8080, None, ())


def test_models_and_logs_move_with_the_data_folder_unless_they_are_set(tmp_path: Path) -> None:
    """F40, F45: LLM_ROUTER_DATA_DIR moves models and logs too when it is set."""
    unset = load({}, {}).config
    assert unset.data_dir == Path.home() / ".llm-router"
    assert unset.models_dir == Path.home() / ".runtime/models"
    assert unset.log_dir == Path.home() / ".llm-node/logs"
    assert unset.database_url == Path.home() / ".llm-router/router.db"

    moved = load({}, {"LLM_ROUTER_DATA_DIR": str(tmp_path)}).config
    assert moved.models_dir == tmp_path / "models"
    assert moved.log_dir == tmp_path / "logs"
    assert moved.database_url == tmp_path / "router.db"

    partly = load({"data_dir": str(tmp_path)}, {"LLM_MODELS_DIR": "/models"}).config
    assert (partly.models_dir, partly.log_dir) == (Path("/models"), tmp_path / "logs")


def test_paths_are_absolute_with_the_home_expanded(read: Read, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = read({"models_dir": "~/m", "log_dir": "logs"}).config
    assert (config.models_dir, config.log_dir) == (Path.home() / "m", tmp_path / "logs")


def test_the_run_folder_follows_xdg() -> None:
    assert load({}, {"XDG_RUNTIME_DIR": "/run/user/7"}).config.run_dir == Path("/run/user/7/llm-router")
    assert load({}, {}).config.run_dir == Path.home() / ".llm-router/run"


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.is_secret], ids=lambda setting: setting.name)
def test_a_secret_may_come_from_a_file(setting: Setting, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("s3cret-of-a-file\n", encoding="utf-8")
    for variable in setting.variables:
        loaded = load({"data_dir": str(tmp_path)}, {f"{variable}_FILE": str(path)})
        assert getattr(loaded.config, setting.name) == Secret("s3cret-of-a-file")
        assert not any("not a setting" in warning for warning in loaded.warnings)


def test_a_secret_file_that_cannot_be_read_stops_the_start(read: Read) -> None:
    with pytest.raises(SettingError, match=r"openai_api_key: cannot read /nowhere .*OPENAI_API_KEY_FILE"):
        read(environ={"OPENAI_API_KEY_FILE": "/nowhere"})


def test_a_setting_that_is_no_secret_has_no_file_variant(read: Read) -> None:
    loaded = read(environ={"LLM_ROUTER_PORT_FILE": "/etc/hostname"})
    assert loaded.config.port == 8080
    assert loaded.warnings[0].startswith("LLM_ROUTER_PORT_FILE is not a setting")


def test_the_config_file_takes_toml_values(read: Read) -> None:
    config = read(
        toml='open = true\nallowed_hosts = ["a.lan", "b.lan"]\nmodel_idle_timeout = 1.5\nmax_memory_bytes = "2GiB"'
    ).config
    assert (config.open, config.allowed_hosts, config.model_idle_timeout) == (True, ("a.lan", "b.lan"), 1.5)
    assert config.max_memory_bytes == 2 * 1024**3


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("prot = 1", "prot is not a setting; did you mean port\\?"),
        ("worker = 'x'", "worker is not a setting"),
        ("[port]\nx = 1", "port is a table; allowed is"),
        ("port = ", "is not TOML"),
    ],
)
def test_a_config_file_that_says_nonsense_stops_the_start(read: Read, toml: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        read(toml=toml)


def test_a_config_file_that_is_named_must_exist(tmp_path: Path) -> None:
    """F52: LLM_NODE_CONFIG."""
    path = tmp_path / "other.toml"
    with pytest.raises(SettingError, match=r"other\.toml does not exist"):
        load({}, {"LLM_NODE_CONFIG": str(path)})
    path.write_text(f"data_dir = '{tmp_path}'\nport = 1234", encoding="utf-8")
    config = load({}, {"LLM_NODE_CONFIG": str(path)}).config
    assert (config.port, config.config, config.models_dir) == (1234, path, tmp_path / "models")


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_a_config_file_with_a_secret_must_be_its_owners_only(read: Read, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("hf_token = 'hf_abc'", encoding="utf-8")
    path.chmod(0o644)
    with pytest.raises(SettingError, match=f"hf_token and others may read it: run `chmod 600 {path}`"):
        read()
    path.chmod(0o600)
    assert read().config.hf_token == Secret("hf_abc")


def test_a_mistyped_variable_is_warned_of_with_the_nearest_name(read: Read) -> None:
    warnings = read(environ={"LLM_ROUTER_PROT": "1", "LLM_NODE_MODEL_DIR": "/m", "LLM_OTHER_TOOL": "x"}).warnings
    assert warnings == (
        "LLM_ROUTER_PROT is not a setting; did you mean LLM_ROUTER_PORT?",
        "LLM_NODE_MODEL_DIR is not a setting; did you mean LLM_NODE_MODELS_DIR?",
    )


def test_what_env_prints_for_clients_does_not_make_the_peer_its_own_cloud(read: Read) -> None:
    exported = {"OPENAI_BASE_URL": "http://127.0.0.1:8080/v1", "OPENAI_API_KEY": PLACEHOLDER_KEY}
    loaded = read(environ=exported)
    assert loaded.config.openai_base_url == "https://api.openai.com"
    assert loaded.config.openai_api_key is None
    assert "OPENAI_BASE_URL is ignored" in loaded.warnings[0]

    other = read({"port": "9000"}, environ=exported)
    assert other.config.openai_base_url == "http://127.0.0.1:8080/v1"


def test_a_certificate_needs_its_key_and_ports_must_differ(read: Read) -> None:
    with pytest.raises(SettingError, match="tls_cert is given without tls_key"):
        read({"tls_cert": "/c.pem"})
    with pytest.raises(SettingError, match="port and node_port are both 11435"):
        read({"port": "11435"}, {"LLM_NODE_PORT": "11435"})


def test_the_fields_of_the_config_are_the_settings() -> None:
    assert [field.name for field in dataclasses.fields(Config)] == [setting.name for setting in SETTINGS]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_value_has_the_type_that_the_config_promises(setting: Setting) -> None:
    promised = typing.get_type_hints(Config)[setting.name]
    for config in (
        load({}, {}).config,
        load({}, {setting.variable: SAMPLES.get(setting.name, _sample(setting))}).config,
    ):
        assert _fits(getattr(config, setting.name), promised), getattr(config, setting.name)


def _sample(setting: Setting) -> str:
    """A value of a setting that has no other in SAMPLES: the first candidate that its kind takes."""
    for text in ("1", "true", "full", "json", "debug", "local", "never", "key", "10.0.0.1", "http://a.test", "600"):
        try:
            setting.kind.parse(text)
        except ValueError:
            continue
        if setting.name not in ("tls_cert", "tls_key", "config"):
            return text
    return ""


def _fits(value: object, promised: Any) -> bool:
    origin = typing.get_origin(promised)
    if origin is types.UnionType or origin is typing.Union:
        return any(_fits(value, one) for one in typing.get_args(promised))
    if origin is typing.Literal:
        return value in typing.get_args(promised)
    if origin is tuple:
        return isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    return type(value) is promised or (
        isinstance(promised, type) and issubclass(promised, Path) and isinstance(value, Path)
    )
