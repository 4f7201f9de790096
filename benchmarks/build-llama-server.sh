#!/usr/bin/env bash
# Builds llama-server from the source distribution of the pinned llama-cpp-python, so that both sides of the
# benchmark run the same llama.cpp. Usage: build-llama-server.sh FOLDER   (needs pip, cmake, a C++ compiler)
set -euo pipefail
folder=${1:?usage: build-llama-server.sh FOLDER}
root=$(cd "$(dirname "$0")/.." && pwd)
version=$(sed -n 's/^llama = \["llama-cpp-python==\([0-9.]*\)"\]/\1/p' "$root/pyproject.toml")
mkdir -p "$folder/src"
python3 -m pip download --no-deps --no-binary llama-cpp-python "llama-cpp-python==$version" -d "$folder" ||
  { echo "pip could not download the sources; put the unpacked source distribution into $folder/src" >&2; exit 1; }
tar -xzf "$folder"/llama_cpp_python-"$version".tar.gz -C "$folder/src" --strip-components=1
cmake -S "$folder/src/vendor/llama.cpp" -B "$folder/build" -DCMAKE_BUILD_TYPE=Release -DGGML_RPC=ON \
  -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF
cmake --build "$folder/build" --target llama-server -j "$(nproc)"
echo "$folder/build/bin/llama-server"
