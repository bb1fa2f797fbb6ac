"""One answer of the torch engine: prompt, KV cache, sampling, text. All of it on the engine's one thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import DynamicCache

from serving.delivery.stream.wire import EngineImage, EngineRequest, FinishReason, TokenLogprob
from serving.replica.chat.base import EngineDelta, StopStrings
from serving.replica.chat.schemas import SchemaMatcher

PREFILL_TOKENS = 256
"""Most prompt tokens of one step: as long goes a cancelled prefill on."""


class Model(NamedTuple):
    """What sequences share. ``language``: as in ``ChatNetwork``; ``encode``: (tokens, width) of an image."""

    language: Any
    encode: Callable[[EngineImage], Tensor]
    tokenizer: Tokenizer
    image_token_id: int
    end_token_id: int
    device: torch.device


class TorchSequence:
    """See the module's docstring. ``step`` until a delta has a finish reason."""

    def __init__(
        self, model: Model, request: EngineRequest, prompt: Sequence[int], matcher: SchemaMatcher | None
    ) -> None:
        self._model = model
        self._request = request
        self._prompt = torch.tensor(prompt, device=model.device)
        self._matcher = matcher
        self._images: list[Tensor] = []
        self._done = 0
        self._cache: Any = DynamicCache()
        self._last: int | None = None
        self._num_tokens = 0
        self._stop = StopStrings(request.stop)
        self._text = _TextStream(model.tokenizer, prompt)
        self._generator = torch.Generator(device=model.device)
        if request.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(request.seed)

    @property
    def num_held_tokens(self) -> int:
        """Tokens in the KV cache."""
        return self._done + max(0, self._num_tokens - 1)

    @property
    def is_first(self) -> bool:
        """Whether the last delta was the first one."""
        return self._num_tokens == 1

    @torch.inference_mode()
    def step(self) -> EngineDelta | None:
        """One image, one piece of the prompt, or one token. None while the prompt is being read."""
        if len(self._images) < len(self._request.images):
            self._images.append(self._model.encode(self._request.images[len(self._images)]))
            return None
        if self._last is None:
            embeds = self._embed_prompt()
            logits = self._forward(embeds)
            self._done += embeds.shape[1]
            return None if self._done < len(self._prompt) else self._advance(logits)
        token = torch.tensor([[self._last]], device=self._model.device)
        return self._advance(self._forward(self._model.language.get_input_embeddings()(token)))

    def _embed_prompt(self) -> Tensor:
        """The next piece of the prompt, (1, L, width), images in their places."""
        end = min(self._done + PREFILL_TOKENS, len(self._prompt))
        ids = self._prompt[self._done : end]
        embeds: Tensor = self._model.language.get_input_embeddings()(ids)
        places = ids == self._model.image_token_id
        if bool(places.any()):
            seen = int((self._prompt[: self._done] == self._model.image_token_id).sum())
            rows = torch.cat(self._images)[seen : seen + int(places.sum())]
            embeds = embeds.index_put((places,), rows.to(embeds.dtype))
        return embeds[None]

    def _forward(self, embeds: Tensor) -> Tensor:
        """Logits after the last token, float32 (vocabulary)."""
        output = self._model.language(
            inputs_embeds=embeds, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        logits: Tensor = output.logits[0, -1].float()
        return logits

    def _advance(self, logits: Tensor) -> EngineDelta:
        token = self._choose(logits)
        self._last = token
        self._num_tokens += 1
        if self._matcher is not None:
            self._matcher.accept(token)
        is_end = token == self._model.end_token_id and not self._request.ignore_eos
        is_watched = self._num_tokens > self._request.min_tokens
        text, stopped = ("", False) if is_end else self._stop.push(self._text.push(token), is_watched=is_watched)
        reason = self._reason(is_end or stopped)
        if reason is not None and not stopped:
            text += self._stop.flush()
        return EngineDelta(
            text=text,
            token_ids=(token,),
            finish_reason=reason,
            logprobs=self._logprobs(logits, token),
            num_cached_tokens=0,
            num_prompt_tokens=len(self._prompt),
            log_p_ends=self._log_p_ends(logits),
            held_text=self._stop.pending,
        )

    def _log_p_ends(self, logits: Tensor) -> tuple[float, ...] | None:
        if not self._request.tells_ends:
            return None
        return (float(logits[self._model.end_token_id] - logits.logsumexp(-1)),)

    def _reason(self, stopped: bool) -> FinishReason | None:
        if stopped:
            return FinishReason.STOP
        return FinishReason.LENGTH if self._num_tokens >= self._request.max_tokens else None

    def _choose(self, logits: Tensor) -> int:
        request = self._request
        if request.logit_bias:
            logits = logits.clone()
            for token, bias in request.logit_bias.items():
                logits[token] += bias
        if self._num_tokens < request.min_tokens:
            logits = logits.clone()
            logits[self._model.end_token_id] = -torch.inf
        if self._matcher is not None:
            allowed = torch.from_numpy(self._matcher.allowed()).to(logits.device)
            logits = logits.masked_fill(~allowed, -torch.inf)
        if request.temperature == 0:
            return int(logits.argmax())
        return sample(logits / request.temperature, request.top_p, self._generator)

    def _logprobs(self, logits: Tensor, token: int) -> tuple[TokenLogprob, ...]:
        """Of the model itself, before bias, schema and temperature."""
        if self._request.logprobs is None:
            return ()
        logprobs = logits.log_softmax(-1)
        values, ids = logprobs.topk(self._request.logprobs) if self._request.logprobs else (logprobs[:0], logprobs[:0])
        top = tuple((self._name(int(i)), float(v)) for v, i in zip(values, ids, strict=True))
        return (TokenLogprob(self._name(token), float(logprobs[token]), top),)

    def _name(self, token: int) -> str:
        return self._model.tokenizer.decode([token], skip_special_tokens=False)


def sample(logits: Tensor, top_p: float, generator: torch.Generator) -> int:
    """Draw from the smallest set of tokens whose probabilities reach ``top_p``."""
    probabilities, ids = logits.softmax(-1).sort(descending=True)
    before = probabilities.cumsum(-1) - probabilities
    kept = probabilities.masked_fill(before >= top_p, 0.0)
    kept[0] = probabilities[0]  # with top_p 0, too
    return int(ids[torch.multinomial(kept, 1, generator=generator)])


class _TextStream:
    """Tokens to text as they come; bytes of an unfinished character wait for the rest."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(ids=list(prompt), skip_special_tokens=True)

    def push(self, token: int) -> str:
        try:
            return self._stream.step(self._tokenizer, token) or ""
        except Exception as error:
            # The library's own class for all errors is Exception; this one follows text that is not UTF-8.
            if "Invalid prefix" not in str(error):
                raise
            self._stream = DecodeStream(skip_special_tokens=True)
            return self._stream.step(self._tokenizer, token) or ""
