"""Make the embedded model: tokenizer, training, export, check, exam. Under an hour on two cores.

    python -m inference.hello.make                  # writes inference/hello/hello.gguf
    python -m inference.hello.make --steps 200 --out /tmp/try.gguf
    python -m inference.hello.make --from before.gguf --steps 500      # when a few answers have changed

Check and exam need llama-cpp-python (the extra `llama`); without it they are left out, and it says so.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import subprocess
import sys
import time
from pathlib import Path

from inference.hello.make import export
from inference.hello.make.model import Shape
from inference.hello.make.train import begin, train

HELLO = Path(__file__).parent.parent / "hello.gguf"
SIZE_MAX = 4_000_000


def main() -> None:
    """Run all steps; exit 1 when the file is too large, is computed otherwise by llama.cpp, or fails its exam."""
    parser = argparse.ArgumentParser(prog="python -m inference.hello.make", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=HELLO, help="the GGUF file to write")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2600, help="training steps of 2,048 tokens")
    parser.add_argument("--weights", type=Path, help="export these weights (.npz) instead of training")
    parser.add_argument("--from", type=Path, dest="begin", help="begin at the weights and tokenizer of this GGUF file")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint build/hello.npz")
    a = parser.parse_args()
    began = time.time()
    weights = a.weights or Path("build") / "hello.npz"  # git ignores build/
    if a.weights is None:
        weights.parent.mkdir(exist_ok=True)
        if a.begin is not None and not a.resume:
            begin(weights, Shape(), *export.read(a.begin))
        train(Shape(), a.seed, a.steps, weights, a.resume or a.begin is not None)
    model, bpe, shape = export.load(weights)
    stored = export.write(a.out, model, bpe, shape)
    size, digest = a.out.stat().st_size, hashlib.sha256(a.out.read_bytes()).hexdigest()
    count = sum(x.size for x in model.values())
    print(f"{a.out}: {count:,} parameters, {size:,} bytes, sha256 {digest}, {time.time() - began:.0f} s", flush=True)
    if size > SIZE_MAX:
        sys.exit(f"{size:,} bytes are more than {SIZE_MAX:,}")
    if importlib.util.find_spec("llama_cpp") is None:
        sys.exit("Not checked, no exam: llama-cpp-python is not installed (the extra `llama`).")
    export.check(a.out, stored, bpe, shape)
    # In a process of its own: the trainer's threads and the engine's would disturb each other.
    sys.exit(subprocess.call([sys.executable, "-m", "inference.hello.make.exam", str(a.out)]))


if __name__ == "__main__":
    main()
