"""The settings of a peer, as one table: names, kind, default, range and help of each.

`mesh.config` reads them; `llm-router up --help`, docs/configuration.md and config.example.toml are made from them
(`mesh.reference`). Nothing here reads the environment or a file.

A setting's `name` is its variable without `LLM_ROUTER_`, `LLM_NODE_` or `LLM_`, in lower case: the key in config.toml,
the field of `mesh.config.Config` and, with dashes, the flag. Where both families have it, the node's keeps `node_`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh import kinds
from mesh.kinds import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting.

    `variable` is the main environment variable; `also` are equal names that yield to it; `legacy` are old names that
    work with a warning. `default` goes through the same parser (None: unset); `default_note` words a default that
    depends on the machine or on other settings. `is_mesh`: the mesh's own settings may give it later. `is_later`: read
    and checked now, used by a later version. `is_hidden`: for the project's tests only.
    """

    name: str
    variable: str
    kind: Kind
    help: str
    default: str | None = None
    default_note: str | None = None
    unit: str = ""
    also: tuple[str, ...] = ()
    legacy: tuple[str, ...] = ()
    is_mesh: bool = False
    is_later: bool = False
    is_hidden: bool = False

    @property
    def is_secret(self) -> bool:
        """Never shown, and read from a file too (`*_FILE`)."""
        return self.kind is kinds.SECRET

    @property
    def has_flag(self) -> bool:
        """Secrets have none: a command line is seen by everybody on the machine."""
        return not self.is_secret and not self.is_hidden

    @property
    def flag(self) -> str:
        """The option on the command line: `--mesh-port`."""
        return "--" + self.name.replace("_", "-")

    @property
    def variables(self) -> tuple[str, ...]:
        """Every environment variable that gives it, the one that wins first."""
        return (self.variable, *self.also, *self.legacy)


LATER = "(takes effect in a later version)"

GROUPS: dict[str, tuple[Setting, ...]] = {
    "Basics": (
        Setting(
            name="data_dir",
            variable="LLM_ROUTER_DATA_DIR",
            kind=kinds.PATH,
            default="~/.llm-router",
            help="Folder of everything this peer keeps. When it is set, models and logs live in it too.",
        ),
        Setting(
            name="config",
            variable="LLM_NODE_CONFIG",
            kind=kinds.PATH,
            default_note="`<data dir>/config.toml`, if it exists",
            help="The file to read settings from.",
        ),
        Setting(
            name="name",
            variable="LLM_ROUTER_NAME",
            kind=kinds.NAME,
            default_note="the host name",
            help="What this machine is called.",
        ),
    ),
    "Listening": (
        Setting(
            name="host",
            variable="LLM_ROUTER_HOST",
            legacy=("ROUTER_HOST",),
            kind=kinds.HOST,
            default="0.0.0.0",  # noqa: S104 - guarded: without a key only loopback is answered
            help="Address that clients are answered on. Other machines need a key, or --open.",
        ),
        Setting(
            name="port",
            variable="LLM_ROUTER_PORT",
            legacy=("ROUTER_PORT",),
            kind=kinds.PORT,
            default="8080",
            help="Port for clients: the OpenAI-compatible API and the dashboard.",
        ),
        Setting(
            name="node_port",
            variable="LLM_NODE_PORT",
            kind=kinds.integer(1, 65535),
            help="A second port that answers the same (11435 was usual).",
        ),
        Setting(
            name="bind_address",
            variable="LLM_NODE_BIND_ADDRESS",
            legacy=("LLM_BIND_ADDRESS",),
            kind=kinds.HOST,
            default="0.0.0.0",  # noqa: S104 - as above
            help="Address of the second port.",
        ),
        Setting(
            name="open",
            variable="LLM_ROUTER_OPEN",
            kind=kinds.SWITCH,
            default="false",
            help="Answer inference requests of other machines without a key.",
        ),
        Setting(
            name="loopback",
            variable="LLM_ROUTER_LOOPBACK",
            kind=kinds.choice("open", "key"),
            default="open",
            help="Whether programs on this machine need a key.",
        ),
        Setting(
            name="allowed_hosts",
            variable="LLM_ROUTER_ALLOWED_HOSTS",
            kind=kinds.listed(kinds.HOST),
            default="",
            help="Names, besides this machine's own, that requests may use for it (the Host header).",
        ),
        Setting(
            name="allowed_origins",
            variable="LLM_ROUTER_ALLOWED_ORIGINS",
            kind=kinds.listed(kinds.ORIGIN),
            default="",
            help="Web origins whose pages may call /v1 from a browser.",
        ),
        Setting(
            name="tls_cert",
            variable="LLM_ROUTER_TLS_CERT",
            kind=kinds.PATH,
            help="Certificate (PEM) that makes the client port HTTPS; needs the key too.",
        ),
        Setting(
            name="tls_key",
            variable="LLM_ROUTER_TLS_KEY",
            kind=kinds.PATH,
            help="Private key (PEM) of that certificate.",
        ),
        Setting(
            name="ollama_port",
            variable="LLM_ROUTER_OLLAMA_PORT",
            kind=kinds.PORT_OR_OFF,
            default="off",
            is_later=True,
            help="Port that speaks Ollama's own API at its root (11434 is Ollama's).",
        ),
    ),
    "Models and memory": (
        Setting(
            name="models_dir",
            variable="LLM_NODE_MODELS_DIR",
            legacy=("LLM_MODELS_DIR",),
            kind=kinds.PATH,
            default="~/.runtime/models",
            default_note="`~/.runtime/models`; `<data dir>/models` when the data folder is set",
            help="Folder of the models.",
        ),
        Setting(
            name="slots",
            variable="LLM_ROUTER_SLOTS",
            kind=kinds.integer(0, 64, zero="chosen for this machine"),
            default="0",
            help="Requests that one model serves at the same time.",
        ),
        Setting(
            name="context",
            variable="LLM_ROUTER_CONTEXT",
            kind=kinds.integer(0, 16_777_216, zero="the model's own, as memory allows"),
            default="0",
            unit="tokens",
            help="Longest prompt plus answer of one request.",
        ),
        Setting(
            name="threads",
            variable="LLM_ROUTER_THREADS",
            kind=kinds.integer(0, 1024, zero="chosen from the cores"),
            default="0",
            help="Threads that compute for one model.",
        ),
        Setting(
            name="model_idle_timeout",
            variable="LLM_NODE_MODEL_IDLE_TIMEOUT",
            legacy=("LLM_MODEL_IDLE_TIMEOUT",),
            kind=kinds.seconds(0, 31_536_000, zero="never"),
            default="300",
            unit="seconds",
            help="A model without requests for this long leaves memory.",
        ),
        Setting(
            name="max_loaded_models",
            variable="LLM_NODE_MAX_LOADED_MODELS",
            legacy=("LLM_MAX_LOADED_MODELS",),
            kind=kinds.integer(1, 64),
            default="1",
            help="Models in memory at the same time. The least recently used goes first, never one that is answering.",
        ),
        Setting(
            name="max_memory_bytes",
            variable="LLM_NODE_MAX_MEMORY_BYTES",
            legacy=("LLM_MAX_MEMORY_BYTES",),
            kind=kinds.size(1),
            default_note="chosen from the memory of this machine",
            unit="bytes",
            help="Memory that loaded models may take in all.",
        ),
        Setting(
            name="auto_repair",
            variable="LLM_NODE_AUTO_REPAIR",
            kind=kinds.SWITCH,
            default="true",
            is_later=True,
            help="Fetch a damaged model file again, once.",
        ),
        Setting(
            name="repair_timeout_secs",
            variable="LLM_NODE_REPAIR_TIMEOUT_SECS",
            kind=kinds.seconds(1, 86_400),
            default="60",
            unit="seconds",
            is_later=True,
            help="How long requests wait for such a repair.",
        ),
        Setting(
            name="auto_model",
            variable="LLM_ROUTER_AUTO_MODEL",
            kind=kinds.AUTO_MODEL,
            default="off",
            is_later=True,
            help="Fetch a model at the first start: one that fits (true), or the one named.",
        ),
        Setting(
            name="adopt",
            variable="LLM_ROUTER_ADOPT",
            kind=kinds.SWITCH,
            default="true",
            is_later=True,
            help="Serve the models of Ollama, LM Studio and the like on this machine too.",
        ),
    ),
    "Logs": (
        Setting(
            name="log_level",
            variable="LLM_ROUTER_LOG_LEVEL",
            kind=kinds.LEVEL,
            default="info",
            help="What the console shows.",
        ),
        Setting(
            name="log_format",
            variable="LLM_ROUTER_LOG_FORMAT",
            kind=kinds.choice("auto", "text", "json"),
            default="auto",
            help="Form of the console's lines; auto is text on a terminal and JSON elsewhere.",
        ),
        Setting(
            name="node_log_level",
            variable="LLM_NODE_LOG_LEVEL",
            legacy=("LLM_LOG_LEVEL",),
            kind=kinds.LEVEL,
            default="info",
            help="What the log files hold.",
        ),
        Setting(
            name="log_dir",
            variable="LLM_NODE_LOG_DIR",
            kind=kinds.PATH,
            default="~/.llm-node/logs",
            default_note="`~/.llm-node/logs`; `<data dir>/logs` when the data folder is set",
            help="Folder of the log files: JSON lines, a file a day.",
        ),
        Setting(
            name="log_retention_days",
            variable="LLM_NODE_LOG_RETENTION_DAYS",
            kind=kinds.integer(1, 3650),
            default="7",
            unit="days",
            help="Log files older than this are deleted.",
        ),
    ),
    "Mesh": (
        Setting(
            name="mesh_port",
            variable="LLM_ROUTER_MESH_PORT",
            kind=kinds.integer(1, 65535),
            default_note="client port + 1, or the next free one",
            help="Port that peers talk to each other on.",
        ),
        Setting(
            name="url",
            variable="LLM_ROUTER_URL",
            also=("ROUTER_URL",),
            kind=kinds.listed(kinds.LINE),
            default="",
            help="Peers to join besides those found on the network: host, host:port or http://host:port.",
        ),
        Setting(
            name="ip",
            variable="LLM_NODE_IP",
            kind=kinds.ADDRESS,
            default_note="detected",
            help="Address of this machine that other peers are told.",
        ),
        Setting(
            name="mdns",
            variable="LLM_ROUTER_MDNS",
            kind=kinds.SWITCH,
            default="true",
            help="Find peers, and be found, on the local network.",
        ),
        Setting(
            name="join",
            variable="LLM_ROUTER_JOIN",
            kind=kinds.SECRET,
            help="Token to join a mesh without asking.",
        ),
        Setting(
            name="door_minutes",
            variable="LLM_ROUTER_DOOR_MINUTES",
            kind=kinds.integer(0, 1440, zero="never open"),
            default="10",
            unit="minutes",
            help="How long a new mesh lets machines of the same network in by themselves.",
        ),
        Setting(
            name="coordinator",
            variable="LLM_ROUTER_COORDINATOR",
            kind=kinds.choice("prefer", "allow", "never"),
            default="allow",
            help="Whether this machine may coordinate the mesh.",
        ),
        Setting(
            name="run_dir",
            variable="LLM_ROUTER_RUN_DIR",
            kind=kinds.PATH,
            default_note="`$XDG_RUNTIME_DIR/llm-router`, else `~/.llm-router/run`",
            help="Folder where the peers of one user on one machine find each other.",
        ),
        Setting(
            name="heartbeat_secs",
            variable="LLM_NODE_HEARTBEAT_SECS",
            legacy=("LLM_HEARTBEAT_SECS",),
            kind=kinds.seconds(1, 3600),
            default="10",
            unit="seconds",
            help="A full report of the load goes to the other peers at least this often.",
        ),
    ),
    "Balancing": (
        Setting(
            name="load_balancer_mode",
            variable="LLM_ROUTER_LOAD_BALANCER_MODE",
            also=("LOAD_BALANCER_MODE",),
            kind=kinds.choice("auto", "metrics"),
            default="auto",
            is_mesh=True,
            help="How a peer is chosen: by expected time to the first token, or by CPU, memory and requests alone.",
        ),
        Setting(
            name="health_check_interval",
            variable="LLM_ROUTER_HEALTH_CHECK_INTERVAL",
            legacy=("HEALTH_CHECK_INTERVAL",),
            kind=kinds.seconds(1, 86_400),
            default="30",
            unit="seconds",
            is_mesh=True,
            help="How often servers that were registered by hand are checked.",
        ),
        Setting(
            name="node_timeout",
            variable="LLM_ROUTER_NODE_TIMEOUT",
            legacy=("NODE_TIMEOUT",),
            kind=kinds.seconds(1, 86_400),
            default="60",
            unit="seconds",
            is_mesh=True,
            help="A server that was registered by hand and is silent this long counts as offline.",
        ),
    ),
    "History": (
        Setting(
            name="database_url",
            variable="LLM_ROUTER_DATABASE_URL",
            legacy=("DATABASE_URL",),
            kind=kinds.DATABASE,
            default_note="`sqlite://<data dir>/router.db`",
            help="Where the history is stored.",
        ),
        Setting(
            name="history_ack",
            variable="LLM_ROUTER_HISTORY_ACK",
            kind=kinds.choice("local", "replicated"),
            default="local",
            is_mesh=True,
            help="When a request counts as recorded: on this machine's disk, or on another's too.",
        ),
        Setting(
            name="history_days",
            variable="LLM_ROUTER_HISTORY_DAYS",
            kind=kinds.integer(1, 3650),
            default="7",
            unit="days",
            is_mesh=True,
            help="How long requests and answers are kept.",
        ),
        Setting(
            name="history_bodies",
            variable="LLM_ROUTER_HISTORY_BODIES",
            kind=kinds.choice("full", "metadata", "off"),
            default="full",
            is_mesh=True,
            help="What is kept: texts and all, all but the texts, or nothing.",
        ),
        Setting(
            name="history_max_bytes",
            variable="LLM_ROUTER_HISTORY_MAX_BYTES",
            kind=kinds.size(1),
            default_note="no limit",
            unit="bytes",
            is_mesh=True,
            help="The oldest texts go when the history is larger.",
        ),
    ),
    "Users and keys": (
        Setting(
            name="admin_username",
            variable="LLM_ROUTER_ADMIN_USERNAME",
            legacy=("ADMIN_USERNAME",),
            kind=kinds.NAME,
            default="admin",
            help="Name of the first administrator, used only when the mesh is formed.",
        ),
        Setting(
            name="admin_password",
            variable="LLM_ROUTER_ADMIN_PASSWORD",
            legacy=("ADMIN_PASSWORD",),
            kind=kinds.SECRET,
            help="Password of the first administrator. Without it a one-time link is printed.",
        ),
        Setting(
            name="jwt_secret",
            variable="LLM_ROUTER_JWT_SECRET",
            kind=kinds.SECRET,
            help="Signs logins with HS256 and this secret. Without it each peer signs with its own key.",
        ),
    ),
    "Clouds": (
        Setting(
            name="openai_api_key",
            variable="LLM_ROUTER_OPENAI_API_KEY",
            also=("OPENAI_API_KEY",),
            kind=kinds.SECRET,
            is_later=True,
            help="Key for models named `openai:...`.",
        ),
        Setting(
            name="anthropic_api_key",
            variable="LLM_ROUTER_ANTHROPIC_API_KEY",
            also=("ANTHROPIC_API_KEY",),
            kind=kinds.SECRET,
            is_later=True,
            help="Key for models named `anthropic:...`.",
        ),
        Setting(
            name="google_api_key",
            variable="LLM_ROUTER_GOOGLE_API_KEY",
            also=("GOOGLE_API_KEY",),
            kind=kinds.SECRET,
            is_later=True,
            help="Key for models named `google:...`.",
        ),
        Setting(
            name="openai_base_url",
            variable="LLM_ROUTER_OPENAI_BASE_URL",
            also=("OPENAI_BASE_URL",),
            kind=kinds.URL,
            default="https://api.openai.com",
            is_later=True,
            help="Where `openai:...` goes. An OPENAI_BASE_URL that points at this very peer is ignored.",
        ),
        Setting(
            name="anthropic_api_base_url",
            variable="LLM_ROUTER_ANTHROPIC_API_BASE_URL",
            also=("ANTHROPIC_API_BASE_URL",),
            kind=kinds.URL,
            default="https://api.anthropic.com",
            is_later=True,
            help="Where `anthropic:...` goes.",
        ),
        Setting(
            name="google_api_base_url",
            variable="LLM_ROUTER_GOOGLE_API_BASE_URL",
            also=("GOOGLE_API_BASE_URL",),
            kind=kinds.URL,
            default="https://generativelanguage.googleapis.com/v1beta",
            is_later=True,
            help="Where `google:...` goes.",
        ),
        Setting(
            name="cloud_models",
            variable="LLM_ROUTER_CLOUD_MODELS",
            kind=kinds.listed(kinds.LINE),
            default="",
            is_mesh=True,
            is_later=True,
            help="Cloud models to show in /v1/models, such as openai:gpt-4o.",
        ),
    ),
    "Downloads and the network": (
        Setting(
            name="hf_token",
            variable="HF_TOKEN",
            kind=kinds.SECRET,
            is_later=True,
            help="Hugging Face token, for models that ask for one.",
        ),
        Setting(
            name="hf_base_url",
            variable="HF_BASE_URL",
            kind=kinds.URL,
            default_note="`https://huggingface.co`",
            is_later=True,
            help="A mirror or cache of Hugging Face.",
        ),
        Setting(
            name="dl_max_retries",
            variable="LLM_DL_MAX_RETRIES",
            kind=kinds.integer(0, 100),
            default="2",
            is_later=True,
            help="How often a failed download is tried again.",
        ),
        Setting(
            name="dl_backoff_ms",
            variable="LLM_DL_BACKOFF_MS",
            kind=kinds.integer(0, 600_000),
            default="200",
            unit="milliseconds",
            is_later=True,
            help="Wait before the first retry; it doubles each time.",
        ),
        Setting(
            name="dl_concurrency",
            variable="LLM_DL_CONCURRENCY",
            kind=kinds.integer(1, 64),
            default="4",
            is_later=True,
            help="Downloads at the same time.",
        ),
        Setting(
            name="dl_max_bps",
            variable="LLM_DL_MAX_BPS",
            kind=kinds.size(zero="no limit"),
            default="0",
            unit="bytes per second",
            is_later=True,
            help="Highest rate of downloads.",
        ),
        Setting(
            name="dl_chunk",
            variable="LLM_DL_CHUNK",
            kind=kinds.size(512),
            default="4096",
            unit="bytes",
            is_later=True,
            help="Bytes read and written at once.",
        ),
        Setting(
            name="http_proxy",
            variable="HTTP_PROXY",
            also=("http_proxy",),
            kind=kinds.PROXY,
            is_later=True,
            help="Proxy for http:// addresses, used by downloads and clouds, never between peers.",
        ),
        Setting(
            name="https_proxy",
            variable="HTTPS_PROXY",
            also=("https_proxy",),
            kind=kinds.PROXY,
            is_later=True,
            help="Proxy for https:// addresses, likewise.",
        ),
        Setting(
            name="no_proxy",
            variable="NO_PROXY",
            also=("no_proxy",),
            kind=kinds.listed(kinds.LINE),
            default="",
            is_later=True,
            help="Hosts that are reached without a proxy.",
        ),
    ),
    "Hardware": (
        Setting(
            name="allow_no_gpu",
            variable="LLM_NODE_ALLOW_NO_GPU",
            legacy=("LLM_ALLOW_NO_GPU",),
            kind=kinds.SWITCH,
            default_note="unset: a machine without GPU serves from its CPU",
            help="false: without a GPU this machine only routes. true: servers without GPU may be registered too.",
        ),
        Setting(
            name="gpu_available",
            variable="LLM_GPU_AVAILABLE",
            kind=kinds.SWITCH,
            default_note="detected",
            help="What to say of the GPU when detection fails.",
        ),
        Setting(
            name="gpu_model",
            variable="LLM_GPU_MODEL",
            kind=kinds.NAME,
            default_note="detected",
            help="Its name, likewise.",
        ),
        Setting(
            name="gpu_count",
            variable="LLM_GPU_COUNT",
            kind=kinds.integer(0, 64),
            default_note="detected",
            help="How many there are, likewise.",
        ),
    ),
    "Tests": (
        Setting(
            name="worker",
            variable="LLM_ROUTER_WORKER",
            kind=kinds.LINE,
            is_hidden=True,
            help="Command of the worker to start in place of the real engine.",
        ),
    ),
}

SETTINGS = tuple(setting for group in GROUPS.values() for setting in group)
BY_NAME = {setting.name: setting for setting in SETTINGS}
