# llm-router in a container.
#
#   docker build -t llm-router .                       # CPU
#   docker build -t llm-router --build-arg CUDA=cuda . # NVIDIA; run with --gpus all
#   docker run --network host -v llm-router:/data llm-router
#
# Host networking, because mDNS does not cross Docker's bridge, and so that programs of the host need no key; how to do
# without: INSTALL.md, "Several containers".
ARG CUDA=cpu

FROM python:3.12-slim-bookworm AS build-cpu
# Any x86-64 with AVX2, not only the machine that built the image.
ENV CMAKE_ARGS="-DGGML_NATIVE=OFF"
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

FROM nvidia/cuda:12.9.1-devel-ubuntu24.04 AS build-cuda
# The driver (libcuda.so.1) comes from the host when the container runs; here only its stub is there to link with.
ENV CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_CUDA=ON -DCMAKE_EXE_LINKER_FLAGS=-Wl,--allow-shlib-undefined"
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3 python3-venv && rm -rf /var/lib/apt/lists/*

FROM build-${CUDA} AS build
ENV UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_PROJECT_ENVIRONMENT=/opt/llm-router
RUN python3 -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir uv
WORKDIR /src
# The engine first: it takes minutes, and a change of our own sources must not build it again.
COPY pyproject.toml README.md LICENSE ./
RUN /opt/uv/bin/uv sync --no-dev --extra llama --no-install-project
COPY mesh ./mesh
COPY inference ./inference
COPY gossip ./gossip
COPY web ./web
RUN /opt/uv/bin/uv sync --no-dev --extra llama --no-editable

FROM python:3.12-slim-bookworm AS run-cpu
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*

FROM nvidia/cuda:12.9.1-runtime-ubuntu24.04 AS run-cuda
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 python3 && rm -rf /var/lib/apt/lists/*

FROM run-${CUDA}
RUN useradd --system --uid 10001 --create-home router && install -d -o router -g router -m 0700 /data
COPY --from=build /opt/llm-router /opt/llm-router
ENV PATH=/opt/llm-router/bin:$PATH
ENV LLM_ROUTER_DATA_DIR=/data
ENV LLM_NODE_PORT=11435
USER router
VOLUME /data
# Clients; the other machines of the mesh; clients again, on the port that older scripts know. mDNS is UDP 5353.
EXPOSE 8080 8081 11435
# Whose certificate it is does not matter on loopback.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python3", "-c", "import os, ssl, urllib.request as u; s = 'https' if os.environ.get('LLM_ROUTER_TLS_CERT') else 'http'; u.urlopen(s + '://127.0.0.1:' + os.environ.get('LLM_ROUTER_PORT', '8080') + '/health', timeout=4, context=ssl._create_unverified_context())"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["llm-router"]
CMD ["up"]
