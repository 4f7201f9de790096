"""The table of settings: complete against the contract, consistent in itself, and equal to the pages made from it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from mesh import reference
from mesh.settings import BY_NAME, SETTINGS, Setting

ROOT = Path(__file__).parents[2]

# The contract's section 2, name by name, with its default as the table of the contract has it.
CONTRACT = {
    "LLM_ROUTER_HOST": "0.0.0.0",
    "LLM_ROUTER_PORT": "8080",
    "LLM_ROUTER_LOG_LEVEL": "info",
    "LLM_ROUTER_JWT_SECRET": None,
    "LLM_ROUTER_ADMIN_USERNAME": "admin",
    "LLM_ROUTER_ADMIN_PASSWORD": None,
    "LLM_ROUTER_DATABASE_URL": None,
    "LLM_ROUTER_HEALTH_CHECK_INTERVAL": "30",
    "LLM_ROUTER_NODE_TIMEOUT": "60",
    "LLM_ROUTER_LOAD_BALANCER_MODE": "auto",
    "OPENAI_API_KEY": None,
    "ANTHROPIC_API_KEY": None,
    "GOOGLE_API_KEY": None,
    "LLM_ROUTER_OPENAI_API_KEY": None,
    "LLM_ROUTER_ANTHROPIC_API_KEY": None,
    "LLM_ROUTER_GOOGLE_API_KEY": None,
    "OPENAI_BASE_URL": "https://api.openai.com",
    "ANTHROPIC_API_BASE_URL": "https://api.anthropic.com",
    "GOOGLE_API_BASE_URL": "https://generativelanguage.googleapis.com/v1beta",
    "LLM_ROUTER_URL": "",
    "ROUTER_URL": "",
    "LLM_NODE_PORT": None,
    "LLM_NODE_IP": None,
    "LLM_NODE_MODELS_DIR": "~/.runtime/models",
    "LLM_NODE_BIND_ADDRESS": "0.0.0.0",
    "LLM_NODE_HEARTBEAT_SECS": "10",
    "LLM_NODE_ALLOW_NO_GPU": None,
    "LLM_NODE_LOG_LEVEL": "info",
    "LLM_NODE_LOG_DIR": "~/.llm-node/logs",
    "LLM_NODE_LOG_RETENTION_DAYS": "7",
    "LLM_NODE_MODEL_IDLE_TIMEOUT": "300",
    "LLM_NODE_MAX_LOADED_MODELS": "1",
    "LLM_NODE_MAX_MEMORY_BYTES": None,
    "LLM_NODE_AUTO_REPAIR": "true",
    "LLM_NODE_REPAIR_TIMEOUT_SECS": "60",
    "LLM_NODE_CONFIG": None,
    "HF_TOKEN": None,
    "HF_BASE_URL": None,
    "HTTP_PROXY": None,
    "HTTPS_PROXY": None,
    "NO_PROXY": "",
    "LLM_DL_MAX_RETRIES": "2",
    "LLM_DL_BACKOFF_MS": "200",
    "LLM_DL_CONCURRENCY": "4",
    "LLM_DL_MAX_BPS": "0",
    "LLM_DL_CHUNK": "4096",
    "LLM_GPU_AVAILABLE": None,
    "LLM_GPU_MODEL": None,
    "LLM_GPU_COUNT": None,
    "LOAD_BALANCER_MODE": "auto",
    "LLM_ROUTER_DATA_DIR": "~/.llm-router",
    "LLM_ROUTER_NAME": None,
    "LLM_ROUTER_MESH_PORT": None,
    "LLM_ROUTER_MDNS": "true",
    "LLM_ROUTER_JOIN": None,
    "LLM_ROUTER_DOOR_MINUTES": "10",
    "LLM_ROUTER_COORDINATOR": "allow",
    "LLM_ROUTER_OPEN": "false",
    "LLM_ROUTER_LOOPBACK": "open",
    "LLM_ROUTER_ALLOWED_HOSTS": "",
    "LLM_ROUTER_ALLOWED_ORIGINS": "",
    "LLM_ROUTER_TLS_CERT": None,
    "LLM_ROUTER_TLS_KEY": None,
    "LLM_ROUTER_RUN_DIR": None,
    "LLM_ROUTER_HISTORY_ACK": "local",
    "LLM_ROUTER_HISTORY_DAYS": "7",
    "LLM_ROUTER_HISTORY_BODIES": "full",
    "LLM_ROUTER_HISTORY_MAX_BYTES": None,
    "LLM_ROUTER_ADOPT": "true",
    "LLM_ROUTER_OLLAMA_PORT": "off",
    "LLM_ROUTER_CLOUD_MODELS": "",
    "LLM_ROUTER_AUTO_MODEL": "off",
    "LLM_ROUTER_LOG_FORMAT": "auto",
}
# Rows F30-31 and F53: old names and the new one of each.
LEGACY = {
    "ROUTER_HOST": "LLM_ROUTER_HOST",
    "ROUTER_PORT": "LLM_ROUTER_PORT",
    "DATABASE_URL": "LLM_ROUTER_DATABASE_URL",
    "HEALTH_CHECK_INTERVAL": "LLM_ROUTER_HEALTH_CHECK_INTERVAL",
    "NODE_TIMEOUT": "LLM_ROUTER_NODE_TIMEOUT",
    "ADMIN_USERNAME": "LLM_ROUTER_ADMIN_USERNAME",
    "ADMIN_PASSWORD": "LLM_ROUTER_ADMIN_PASSWORD",
    "LLM_LOG_LEVEL": "LLM_NODE_LOG_LEVEL",
    "LLM_MODELS_DIR": "LLM_NODE_MODELS_DIR",
    "LLM_BIND_ADDRESS": "LLM_NODE_BIND_ADDRESS",
    "LLM_HEARTBEAT_SECS": "LLM_NODE_HEARTBEAT_SECS",
    "LLM_ALLOW_NO_GPU": "LLM_NODE_ALLOW_NO_GPU",
    "LLM_MODEL_IDLE_TIMEOUT": "LLM_NODE_MODEL_IDLE_TIMEOUT",
    "LLM_MAX_LOADED_MODELS": "LLM_NODE_MAX_LOADED_MODELS",
    "LLM_MAX_MEMORY_BYTES": "LLM_NODE_MAX_MEMORY_BYTES",
}
OUR_OWN = {"slots", "context", "threads", "worker"}


def setting_of(variable: str) -> Setting:
    found = [setting for setting in SETTINGS if variable in setting.variables]
    assert len(found) == 1, f"{variable} belongs to {[setting.name for setting in found]}"
    return found[0]


@pytest.mark.parametrize("variable", CONTRACT)
def test_every_setting_of_the_contract_exists_with_its_default(variable: str) -> None:
    """F17-F29, F37-F52, F88-89, F110, F121, F136, F182-184: the variables and their defaults."""
    assert setting_of(variable).default == CONTRACT[variable]


def test_the_table_has_nothing_that_the_contract_does_not_name() -> None:
    of_contract = {setting_of(variable).name for variable in CONTRACT}
    ours = {f"{cloud}_base_url" for cloud in ("openai", "anthropic_api", "google_api")}
    assert {setting.name for setting in SETTINGS} - of_contract - ours == OUR_OWN


@pytest.mark.parametrize("old", LEGACY)
def test_every_old_name_belongs_to_its_new_one(old: str) -> None:
    """F30-31, F53: legacy names."""
    setting = setting_of(old)
    assert setting.variable == LEGACY[old]
    assert old in setting.legacy


def test_there_are_no_other_old_names() -> None:
    assert {name for setting in SETTINGS for name in setting.legacy} == set(LEGACY)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_name_is_the_variable_without_its_prefix(setting: Setting) -> None:
    short = re.sub(r"^LLM_(ROUTER_|NODE_)?", "", setting.variable).lower()
    colliding = {"port", "log_level"} if setting.variable.startswith("LLM_NODE_") else set()
    assert setting.name == (f"node_{short}" if short in colliding else short)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_default_is_allowed(setting: Setting) -> None:
    if setting.default is not None:
        setting.kind.parse(setting.default)
    else:
        assert setting.default_note is None or not setting.is_secret


def test_secrets_have_no_flag() -> None:
    secrets = {setting.name for setting in SETTINGS if setting.is_secret}
    assert {"openai_api_key", "jwt_secret", "admin_password", "join", "hf_token"} <= secrets
    assert not any(BY_NAME[name].has_flag for name in secrets)


def test_the_pages_are_what_the_table_says() -> None:
    """The message of a failure: run `python -m mesh.reference --write`."""
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == reference.configuration_page()
    assert (ROOT / "config.example.toml").read_text(encoding="utf-8") == reference.example_file()


def test_the_page_names_every_setting_and_not_the_one_of_the_tests() -> None:
    page = reference.configuration_page() + reference.example_file()
    for setting in SETTINGS:
        assert (setting.variable in page) is not setting.is_hidden
        assert all((name in page) is not setting.is_hidden for name in (*setting.also, *setting.legacy))


def test_the_example_with_its_comment_signs_removed_is_valid_toml_with_every_setting() -> None:
    text = re.sub(r"^# (\w+ = )", r"\1", reference.example_file(), flags=re.MULTILINE)
    table = tomllib.loads(text)
    assert set(table) == {setting.name for setting in SETTINGS if not setting.is_hidden and setting.name != "config"}
    for name, value in table.items():
        if value not in ("", []):
            text = str(value).lower() if isinstance(value, bool) else str(value)
            assert BY_NAME[name].default in (text, None), name


def test_a_setting_whose_feature_comes_later_says_so_in_the_page() -> None:
    rows = {line.split("`")[1]: line for line in reference.configuration_page().splitlines() if line.startswith("| `")}
    for setting in SETTINGS:
        if not setting.is_hidden:
            assert ("Later." in rows[setting.variable]) is setting.is_later
