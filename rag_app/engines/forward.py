"""Evaluates tokens with a Transformers model and chooses the next ones. Knows nothing of text, prompts or files.

A prompt is a list of batches. As in decoder.py, only whole leading batches of the prompt before are taken over, so that
the same prompt gives the same numbers whatever was asked before.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rag_app.decoding import Decoding
from rag_app.engines import contrastive
from rag_app.engines.quoting import QuoteMask
from rag_app.engines.tuned import Key, Tuned, Use

if TYPE_CHECKING:
    import torch

Batch = tuple[int, ...]
Unwanted = Callable[[], bool]


class Forward:
    """A model and the prompt that it holds. One thread at a time; its methods run in torch.inference_mode."""

    def __init__(self, model: Any, ends: frozenset[int]) -> None:
        self._model, self._ends = model, ends
        self._tuned = Tuned(model)
        self._adapters: Key = ()
        keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if keeps else {}
        self._cache: Any = None
        self._batches: list[Batch] = []
        self._hidden: list[torch.Tensor] = []
        self._logits: Any = None

    def read(
        self, prompt: list[Batch], decoding: Decoding, unwanted: Unwanted, adapters: Sequence[Use] = ()
    ) -> Iterator[int]:
        """Evaluates a prompt, batch by batch; ends early once it is `unwanted`. The reply has the same adapters.

        Yields:
            before each batch how many tokens need no evaluation any more; the first number is of those reused.

        Raises:
            AdapterInvalid: an adapter cannot be loaded.
        """
        applied = self._tuned.apply(adapters)
        if applied != self._adapters:
            self.forget()
        self._adapters = applied
        hidden = decoding.penalty_alpha > 0  # of every token, so that nothing can be taken over
        if decoding.num_beams > 1:  # each reads the last token for itself
            prompt = [batch for batch in (*prompt[:-1], prompt[-1][:-1]) if batch]
        self._hidden = []
        self._rewind(0 if hidden else self._shared(prompt))
        for batch in prompt[len(self._batches) :]:
            yield sum(map(len, self._batches))
            if unwanted():
                return
            self._evaluate(batch, hidden)
            self._batches.append(batch)

    def tokens(
        self, prompt: list[Batch], decoding: Decoding, mask: QuoteMask | None, unwanted: Unwanted
    ) -> Iterator[int]:
        """The tokens of the reply to a prompt that was read, up to the one that ends it; the last is not evaluated."""
        given = [token for batch in prompt for token in batch]
        if decoding.num_beams > 1:
            return iter(self._beams(given, decoding, mask, unwanted))
        return self._one_by_one(given, decoding, mask)

    def forget(self) -> None:
        """Drops the prompt that is kept."""
        self._cache, self._batches, self._hidden = None, [], []

    def _shared(self, prompt: list[Batch]) -> int:
        """Leading batches to take over; not the last, whose logits are needed."""
        same = 0
        if self._cache is None or not self._cache.is_croppable:
            return 0
        while same < min(len(self._batches), len(prompt) - 1) and self._batches[same] == prompt[same]:
            same += 1
        return same

    def _rewind(self, kept: int) -> None:
        from transformers import DynamicCache

        del self._batches[kept:]
        if not kept:
            self._cache = DynamicCache(config=self._model.config)
        else:
            self._cache.crop(sum(map(len, self._batches)) - self._cache.get_seq_length())

    def _evaluate(self, tokens: Batch, hidden: bool = False) -> None:
        import torch

        out = self._model(
            input_ids=torch.tensor([tokens], device=self._model.device),
            past_key_values=self._cache,
            use_cache=True,
            output_hidden_states=hidden,
            **self._last_only,
        )
        self._logits = out.logits[0, -1]
        if hidden:
            self._hidden.append(out.hidden_states[-1][0])

    def _one_by_one(self, given: list[int], decoding: Decoding, mask: QuoteMask | None) -> Iterator[int]:
        import torch

        written: list[int] = []
        process = _processors(decoding, len(given))
        random = torch.Generator().manual_seed(decoding.seed)
        while True:
            scores = self._logits.float().cpu().clone()
            if mask:
                mask.apply(scores.numpy())
            if process:
                scores = process(torch.tensor([given + written]), scores[None])[0]
            if decoding.penalty_alpha:
                token = self._contrast(scores, decoding)
            elif decoding.temperature:
                token = int(torch.multinomial(scores.softmax(-1), 1, generator=random))
            else:
                token = int(scores.argmax())
            if token in self._ends:
                return
            written.append(token)
            if mask:
                mask.accept(token)
            yield token
            if not decoding.penalty_alpha:
                self._evaluate((token,))

    def _contrast(self, scores: "torch.Tensor", decoding: Decoding) -> int:
        import torch

        context = torch.cat(self._hidden)
        token, self._logits, state = contrastive.step(
            self._model, self._cache, scores, context, decoding.penalty_alpha, decoding.top_k
        )
        self._hidden = [context, state]
        return token

    def _beams(self, given: list[int], decoding: Decoding, mask: QuoteMask | None, unwanted: Unwanted) -> list[int]:
        import torch
        import transformers

        hf: Any = transformers
        process = _processors(decoding, len(given)) or []
        if mask:
            process = [_Masks(mask, len(given)), *process]
        self._cache.batch_repeat_interleave(decoding.num_beams)
        cache = self._cache
        self.forget()
        ends = sorted(self._ends)
        found = self._model.generate(
            torch.tensor([given], device=self._model.device),
            attention_mask=torch.ones(1, len(given), dtype=torch.long, device=self._model.device),
            past_key_values=cache,
            generation_config=hf.GenerationConfig(
                num_beams=decoding.num_beams,
                max_new_tokens=decoding.max_tokens,
                eos_token_id=ends or None,
                pad_token_id=ends[0] if ends else 0,
            ),
            logits_processor=_processor_list(process),
            stopping_criteria=[lambda ids, _: torch.full(ids.shape[:1], unwanted(), device=ids.device)],
        )
        reply: list[int] = found[0, len(given) :].tolist()
        return reply[: next((place for place, token in enumerate(reply) if token in self._ends), len(reply))]


class _Masks:
    """A mask of quotes for each beam, made from that of the beam which it goes on from."""

    def __init__(self, mask: QuoteMask, prompt: int) -> None:
        self._prompt = prompt
        self._masks: dict[tuple[int, ...], QuoteMask] = {(): mask}

    def __call__(self, ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        masks = {}
        for row, beam in enumerate(ids[:, self._prompt :].tolist()):
            written = tuple(beam)
            mask = self._masks.get(written)
            if mask is None:
                mask = copy.copy(self._masks[written[:-1]])
                mask.accept(written[-1])
            masks[written] = mask
            logits = scores[row].float().cpu().numpy()
            mask.apply(logits)
            scores[row] = scores.new_tensor(logits)
        self._masks = masks
        return scores


class _Occurrences:
    """Presence and frequency penalties, as OpenAI's: of tokens that the reply holds already."""

    def __init__(self, presence: float, frequency: float, prompt: int) -> None:
        self._presence, self._frequency, self._prompt = presence, frequency, prompt

    def __call__(self, ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        written = ids[:, self._prompt :]
        counts = scores.new_zeros(scores.shape).scatter_add_(1, written, scores.new_ones(written.shape))
        return scores - self._presence * (counts > 0) - self._frequency * counts


def _spread(ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
    """Logits below 0, which however low a temperature turns into probabilities."""
    return scores - scores.max(dim=-1, keepdim=True).values


def _processors(decoding: Decoding, prompt: int) -> Any:
    """What changes logits before a choice, in the order of Transformers' `generate`; None where nothing does."""
    import transformers as hf

    chain: list[Any] = []
    if decoding.repetition_penalty != 1:
        chain.append(hf.RepetitionPenaltyLogitsProcessor(float(decoding.repetition_penalty)))
    if decoding.presence_penalty or decoding.frequency_penalty:
        chain.append(_Occurrences(decoding.presence_penalty, decoding.frequency_penalty, prompt))
    if decoding.temperature:
        chain += [_spread, hf.TemperatureLogitsWarper(float(decoding.temperature))]
        if decoding.top_k:
            chain.append(hf.TopKLogitsWarper(decoding.top_k))
        if decoding.top_p < 1:
            chain.append(hf.TopPLogitsWarper(float(decoding.top_p)))
        if decoding.min_p:
            chain.append(hf.MinPLogitsWarper(float(decoding.min_p)))
        if decoding.typical_p < 1:
            chain.append(hf.TypicalLogitsWarper(max(float(decoding.typical_p), 1e-6)))
    return _processor_list(chain) if chain else None


def _processor_list(chain: list[Any]) -> Any:
    from transformers import LogitsProcessorList

    return LogitsProcessorList(chain)
