"""The ways from a client to a holder that benchmarks/hop.py compares: none between, a hop, nginx, LiteLLM's proxy."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.servers import answers, free_port, running
from benchmarks.servers import until as until_runs
from tests.fixtures import make_gguf
from tests.fixtures.peer import Peer, until

SLOTS = 16
WORKER = f"tests.fixtures.fake_worker --rate-by-name --stamp --slots {SLOTS} --tokens 100000 --context 200000"
FOUND_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Clients ask `port`, with `key`; `pid` is the process in the middle, None when there is none."""

    name: str
    port: int
    pid: int | None
    key: str = "none"

    def processor_s(self) -> float:
        """Time the process in the middle and its children have had of the processors."""
        return 0.0 if self.pid is None else processor_s(self.pid)


def processor_s(pid: int, *, with_children: bool = True) -> float:
    """User and system time of a process so far."""
    process = psutil.Process(pid)
    total = 0.0
    for each in [process, *(process.children(recursive=True) if with_children else ())]:
        with contextlib.suppress(psutil.Error):
            times = each.cpu_times()
            total += times.user + times.system
    return total


@contextlib.contextmanager
def two_peers(folder: Path, rates: Sequence[int]) -> Iterator[tuple[Peer, Peer]]:
    """(ingress, holder): one mesh on this machine; the holder alone has a model `rate-N` for each rate."""
    env = {
        "LLM_ROUTER_RUN_DIR": str(folder / "run"),
        "LLM_NODE_BIND_ADDRESS": "127.0.0.1",
        "LLM_ROUTER_WORKER": WORKER,
        "LLM_ROUTER_LOG_LEVEL": "error",
    }
    models = folder / "holder-models"
    models.mkdir()
    for rate in rates:
        make_gguf.tiny(models / f"rate-{rate}.gguf", seed=rate + 1)
    flags = ("--models-dir", str(models), "--slots", str(SLOTS), "--name", "holder")
    with (
        Peer.started(folder / "holder", *flags, env=env) as holder,
        Peer.started(folder / "ingress", "--name", "ingress", env=env) as ingress,
    ):
        wanted = {f"rate-{rate}" for rate in rates}
        until(lambda: wanted <= {m["id"] for m in ingress.get("/v1/models").json["data"]}, "the peers meet", FOUND_S)
        yield ingress, holder


@contextlib.contextmanager
def nginx(folder: Path, holder: Peer) -> Iterator[Way | None]:
    """nginx as a reverse proxy that holds nothing back; None when it is not installed."""
    binary = shutil.which("nginx")
    if binary is None:
        yield None
        return
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(
        f"""daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log /dev/null;
events {{ worker_connections 512; }}
http {{
  access_log off;
  client_body_temp_path {folder}/nginx-body; proxy_temp_path {folder}/nginx-proxy;
  fastcgi_temp_path {folder}/nginx-1; uwsgi_temp_path {folder}/nginx-2; scgi_temp_path {folder}/nginx-3;
  upstream holder {{ server 127.0.0.1:{holder.port}; keepalive 32; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://holder; proxy_http_version 1.1; proxy_buffering off;
      proxy_set_header Connection ""; proxy_set_header Host 127.0.0.1:{holder.port};
    }}
  }}
}}
"""
    )
    with running("nginx", [binary, "-c", str(config), "-p", str(folder)]) as process:
        until_runs(lambda: answers(port, "/ready"), process)
        yield Way(name="nginx", port=port, pid=process.pid)


@contextlib.contextmanager
def litellm(folder: Path, binary: Path | None, holder: Peer, rates: Sequence[int]) -> Iterator[Way | None]:
    """LiteLLM's proxy, one worker process, no database; None when no binary is given. It wants a key, and gets one."""
    if binary is None:
        yield None
        return
    port, key = free_port(), f"sk-{secrets.token_hex(32)}"
    config = folder / "litellm.yaml"
    models = "\n".join(
        f"  - {{model_name: rate-{rate}, litellm_params: {{model: openai/rate-{rate}, api_key: none, "
        f"api_base: 'http://127.0.0.1:{holder.port}/v1'}}}}"
        for rate in rates
    )
    config.write_text(f"model_list:\n{models}\n")
    command = [str(binary), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "OPENAI_", "PYTHON"))}
    env = kept | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MASTER_KEY": key}
    with running("litellm", [*command, "--telemetry", "False"], env) as process:
        until_runs(lambda: answers(port, "/health/liveliness"), process)
        yield Way(name="LiteLLM", port=port, pid=process.pid, key=key)
