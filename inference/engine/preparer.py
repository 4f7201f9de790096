"""From a request on the wire to work for the batcher: the template, the tokens, the limits. On the worker's side.

The watchdog ends the process when a model's chat template takes longer than `TEMPLATE_S`: a thread cannot be stopped,
a process can. One operation in C may keep the interpreter's lock for longer than that, and the watchdog from waking:
then faulthandler's own thread, which needs no lock, ends the process.
"""

from __future__ import annotations

import faulthandler
import os
import secrets
import threading
from dataclasses import replace

import numpy as np

from inference.chat import ChatPrompt, Generation, Message, TextPrompt
from inference.engine.batcher import Work
from inference.engine.channel import Channel
from inference.engine.conversation import alternatives, understood
from inference.engine.llama import Model, Tokens
from inference.engine.template import CHATML, ChatTemplate, TemplateError
from inference.errors import ContextLengthExceeded, InvalidRequest

SURELY_TOO_LONG_CHARS = 32
"""A text with more characters than this for each token of the context is looked at before it is tokenized: that takes a
second and a hundred megabytes for each 2 MB, in which nobody else's prompt is prepared."""

TEMPLATE_S = 2.0
"""A template that renders longer ends the process; the sandbox stops code, not exhaustion."""

LOCKED_S = 1.0
"""How much later the process is ended without a word, its exit code then being 1."""

EXIT_TEMPLATE = 65


class Preparer:
    """Turns a request from the wire into `Work`: template, tokens, limits."""

    def __init__(self, model: Model, template: ChatTemplate | TemplateError, context: int, watchdog: Watchdog) -> None:
        self._model = model
        self._template = template
        self._context = context
        self._watchdog = watchdog

    def work(self, rid: int, request: Generation) -> Work:
        """Raises InvalidRequest or ContextLengthExceeded."""
        prompt = self._tokens(rid, request)
        if not len(prompt):
            prompt = self._model.tokenize("", special=True, add_special=True)
            if not len(prompt):
                raise InvalidRequest("The prompt is empty, and this model has no begin token.", param="prompt")
        room = self._context - len(prompt)
        if room <= 0:
            raise self._too_long(f"the prompt has {len(prompt):,}", _param(request))
        sampling = request.sampling
        if sampling.seed is None:
            sampling = replace(sampling, seed=secrets.randbits(63))
        return Work(
            rid,
            prompt,
            sampling=sampling,
            max_tokens=min(request.max_tokens or room, room),
            vocabulary=self._model,
            stop=request.stop,
            produced=request.produced.tokens,
            draws=request.produced.draws,
            ignore_eos=request.ignore_eos,
        )

    def tokens_of_input(self, value: str | list[int], place: int) -> Tokens:
        """Token ids of one text or token array to embed, the `place`-th. Raises as `work` does."""
        if isinstance(value, str):
            self._check_length(value, f"input[{place}]", "input")
            tokens = self._model.tokenize(value, special=False, add_special=True)
        else:
            tokens = self._checked(value, "input")
        if not 0 < len(tokens) <= self._context:
            raise self._too_long(f"input[{place}] has {len(tokens):,}", "input")
        return tokens

    def _tokens(self, rid: int, request: Generation) -> Tokens:
        prompt = request.prompt
        if isinstance(prompt, ChatPrompt):
            text = self._rendered(rid, prompt, request)
            self._check_length(text, "the prompt", _param(request))
            bos = self._model.bos_text
            return self._model.tokenize(text, special=True, add_special=not (bos and text.startswith(bos)))
        if isinstance(prompt, TextPrompt):
            self._check_length(prompt.text, "the prompt", _param(request))
            return self._model.tokenize(prompt.text, special=True, add_special=True)
        return self._checked(list(prompt.tokens), "prompt")

    def _rendered(self, rid: int, prompt: ChatPrompt, request: Generation) -> str:
        if isinstance(self._template, TemplateError):
            raise InvalidRequest(str(self._template), code="invalid_model_template", param="model")
        if len(prompt.messages) > self._context:
            # None has less than a token. A million, though, would take longer to render than the watchdog allows.
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self._context:,} tokens, but the prompt has "
                f"{len(prompt.messages):,} messages.",
                param="messages",
            )
        self._watchdog.arm(rid)
        try:
            return self._accepted(self._template, understood(prompt.messages, self._model.template or CHATML), request)
        except TemplateError as error:
            if error.refused:
                raise InvalidRequest(str(error), code="invalid_value", param="messages") from error
            raise InvalidRequest(str(error), code="invalid_model_template", param="model") from error
        finally:
            self._watchdog.disarm()

    @staticmethod
    def _accepted(template: ChatTemplate, messages: tuple[Message, ...], request: Generation) -> str:
        """The prompt, of the first shape of the conversation that the template takes. Raises what it says of the first
        one."""
        refusal: TemplateError | None = None
        for shape in (messages, *alternatives(messages)):
            try:
                return template.render(shape, now=request.now, utc_offset_s=request.utc_offset_s)
            except TemplateError as error:
                if not error.refused:
                    raise
                refusal = refusal or error
        assert refusal is not None
        raise refusal

    def _check_length(self, text: str, what: str, param: str) -> None:
        """Raises when `text` cannot fit the context, however it is tokenized."""
        if len(text) > SURELY_TOO_LONG_CHARS * self._context:
            least = self._model.least_tokens(text)
            if least > self._context:
                raise self._too_long(f"{what} has at least {least:,}", param)

    def _too_long(self, what: str, param: str) -> ContextLengthExceeded:
        return ContextLengthExceeded(
            f"This model's maximum context length is {self._context:,} tokens, but {what} tokens. "
            "Shorten it, or set LLM_ROUTER_CONTEXT higher.",
            param=param,
        )

    def _checked(self, ids: list[int], param: str) -> Tokens:
        worst = max(ids, default=0)
        if worst >= self._model.vocab_size or min(ids, default=0) < 0:
            raise InvalidRequest(
                f"Token id {worst if worst >= self._model.vocab_size else min(ids)} is not in this model's "
                f"vocabulary (0 to {self._model.vocab_size - 1}).",
                code="invalid_value",
                param=param,
            )
        return np.asarray(ids, np.int32)


def _param(request: Generation) -> str:
    return "messages" if isinstance(request.prompt, ChatPrompt) else "prompt"


class Watchdog:
    """Ends the process when the chat template of request `rid` renders for more than TEMPLATE_S."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._timer: threading.Timer | None = None
        self._rid: int | None = None

    def arm(self, rid: int | None) -> None:
        """Begin to wait; `rid` None while the model is loading."""
        self._rid = rid
        self._timer = threading.Timer(TEMPLATE_S, self._bite)
        self._timer.daemon = True
        self._timer.start()
        faulthandler.dump_traceback_later(TEMPLATE_S + LOCKED_S, exit=True)

    def disarm(self) -> None:
        """The template is done."""
        faulthandler.cancel_dump_traceback_later()
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _bite(self) -> None:
        message = f"the model's chat template did not finish within {TEMPLATE_S:g} s"
        if self._rid is None:
            self._channel.send(["failed", message])
        else:
            self._channel.fail(self._rid, InvalidRequest(message, code="invalid_model_template", param="model"))
        os._exit(EXIT_TEMPLATE)


def compiled(model: Model) -> ChatTemplate | TemplateError:
    """The model's template; ChatML for files without one; an error is kept for those who want to chat."""
    try:
        return ChatTemplate(model.template or CHATML, bos=model.bos_text, eos=model.eos_text)
    except TemplateError as error:
        return error
