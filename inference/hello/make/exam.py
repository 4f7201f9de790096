"""The model's exam: questions that it was not trained on, asked through llama.cpp.

REQUIRED must all be right at temperature 0, and nearly all at temperature 1, the default of OpenAI's clients.
DEV was looked at while the corpus was written; TEST was not. A mark is a pattern that must appear and one that
must not: read the answers as well.

    python -m inference.hello.make.exam FILE                    # all of it; exit 1 when a required answer is wrong
    python -m inference.hello.make.exam FILE --show             # every answer
    python -m inference.hello.make.exam FILE --ask Hello How    # these, as one chat
"""

from __future__ import annotations

import argparse
import re
import sys
import time

from inference.hello.make.questions import DEV, REQUIRED, TEST, Item

SEEDS = 20
RIGHT_AT_1_MIN = 0.9  # of the required answers, over all seeds


def main() -> None:
    """Print the marks; exit 1 when the required ones are not reached."""
    parser = argparse.ArgumentParser(prog="python -m inference.hello.make.exam", description=__doc__.split("\n")[0])
    parser.add_argument("gguf")
    parser.add_argument("--show", action="store_true", help="print every answer, not only the wrong ones")
    parser.add_argument("--ask", nargs="+", help="only these questions, as one chat")
    a = parser.parse_args()
    examinee = Examinee(a.gguf)
    if a.ask:
        print(examinee.answer(a.ask, 0.0))
        return
    passed = examinee.mark("required", REQUIRED, 0.0, 1, a.show) == 1.0
    passed &= examinee.mark("required", REQUIRED, 1.0, SEEDS, a.show) >= RIGHT_AT_1_MIN
    for name, items in (("dev", DEV), ("test", TEST)):
        examinee.mark(name, items, 0.0, 1, a.show)
        examinee.mark(name, items, 1.0, 1, False)
    print(f"{examinee.unended} answers did not end; {examinee.tokens / examinee.spent_s:.0f} tokens/s")
    sys.exit(0 if passed else "The exam is failed.")


class Examinee:
    """A loaded model, and how much it has said."""

    def __init__(self, path: str) -> None:
        from llama_cpp import Llama

        self._llm = Llama(path, n_ctx=2048, n_threads=1, verbose=False)  # idle threads would spin
        self.tokens = self.unended = 0
        self.spent_s = 0.0

    def answer(self, turns: list[str], temperature: float, seed: int = 1) -> str:
        """The answer to the last of the questions `turns`, sampled as OpenAI's defaults are: nothing cut off."""
        messages: list[dict[str, str]] = []
        began = time.perf_counter()
        for q in turns:
            messages.append({"role": "user", "content": q})
            r = self._llm.create_chat_completion(
                messages, temperature=temperature, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0, seed=seed,
                max_tokens=160,
            )  # fmt: skip
            self.tokens += r["usage"]["completion_tokens"]
            self.unended += r["choices"][0]["finish_reason"] != "stop"
            messages.append({"role": "assistant", "content": r["choices"][0]["message"]["content"]})
        self.spent_s += time.perf_counter() - began
        return messages[-1]["content"]

    def mark(self, name: str, items: list[Item], temperature: float, seeds: int, show: bool) -> float:
        """The share of right answers; prints it, and the wrong ones."""
        right = 0
        for turns, want, ban in items:
            chat = [turns] if isinstance(turns, str) else turns
            for seed in range(1, seeds + 1):
                text = self.answer(chat, temperature, seed)
                ok = bool(re.search(want, text)) and not (ban and re.search(ban, text))
                right += ok
                if show or not ok:
                    print("ok   " if ok else "WRONG", " | ".join(chat), "\n      ->", text.replace("\n", "\n         "))
        total = seeds * len(items)
        print(f"{name}, temperature {temperature:g}: {right} of {total} right", flush=True)
        return right / total


if __name__ == "__main__":
    main()
