"""Answers to many examples by a model of Transformers or PEFT: greedy, in padded batches. Scores nothing.

Rows of a batch end together: what is shorter is padded on its left, masked, and counts its positions from its own
first token, so that an answer is the one that its prompt would get alone.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from finetune.errors import RecordInvalid
from finetune.evaluation.perplexity import evaluating
from finetune.example import Example
from rag_app.engines.layout import Layout
from rag_app.engines.pieces import ends

if TYPE_CHECKING:
    import torch

BATCH, BATCH_ON_GPU = 4096, 32768
"""Tokens of a batch by default, with padding and room for the answers: 32,768 of an 8B model's take 4 GB of cache."""
Progress = Callable[[str, int, int], None]


def answers(
    model: Any,
    layout: Layout,
    examples: Sequence[Example],
    *,
    max_tokens: int,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """The model's answer to each example, in the order given; arguments and errors as of `stream`."""
    found = dict(stream(model, layout, examples, max_tokens=max_tokens, batch_tokens=batch_tokens, progress=progress))
    return [found[place] for place in range(len(examples))]


def stream(
    model: Any,
    layout: Layout,
    examples: Sequence[Example],
    *,
    max_tokens: int,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[int, str]]:
    """Answers as batches are done, those to the longest prompts first.

    Args:
        model: as `checkpoints.load` or `finetune.methods` gives it; it is in the mode again that it was in.
        layout: of the model's tokenizer.
        examples: what is asked.
        max_tokens: most tokens of an answer.
        batch_tokens: most tokens of a batch, by default as the device likes it; a single example may have more.
        progress: told how far it is, as 'answering'.

    Yields:
        an example's place, and its answer without blanks around it.

    Raises:
        RecordInvalid: a prompt leaves no room for an answer in the model's window.
    """
    prompts = [layout.prompt(one.messages()) for one in examples]
    _check(model, examples, prompts, max_tokens)
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    settings = _settings(model, layout, max_tokens)
    on_cpu = next(model.parameters()).device.type == "cpu"
    most, done = batch_tokens or (BATCH if on_cpu else BATCH_ON_GPU), 0
    for batch in _batches(order, prompts, max_tokens, most):
        if progress:
            progress("answering", done, len(examples))
        with evaluating(model):  # entered anew for each batch: whoever reads the answers may train between two
            written = _written(model, [prompts[place] for place in batch], settings)
        for place, tokens in zip(batch, written.tolist(), strict=True):
            yield place, _text(layout, tokens, settings.eos_token_id)
        done += len(batch)
    if progress:
        progress("answering", done, len(examples))


def fits(model: Any, prompt: Sequence[int], max_tokens: int) -> bool:
    """Whether the model's window holds a prompt and an answer of so many tokens."""
    return len(prompt) + max_tokens <= _window(model)


def _window(model: Any) -> float:
    """Most tokens that the model was made for; infinite where it does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or float("inf")


def _check(model: Any, examples: Sequence[Example], prompts: Sequence[list[int]], max_tokens: int) -> None:
    for example, prompt in zip(examples, prompts, strict=True):
        if not fits(model, prompt, max_tokens):
            raise RecordInvalid(
                f"{example.origin or example.id}: the prompt has {len(prompt):,} tokens, which leaves no room for an "
                f"answer of {max_tokens:,} in the model's window of {_window(model):,}: shorten its passages"
            )


def _batches(
    order: Sequence[int], prompts: Sequence[list[int]], max_tokens: int, batch_tokens: int
) -> Iterator[list[int]]:
    """Places from the longest prompt on; the first of a batch is its longest."""
    batch: list[int] = []
    for place in order:
        if batch and (len(batch) + 1) * (len(prompts[batch[0]]) + max_tokens) > batch_tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _settings(model: Any, layout: Layout, max_tokens: int) -> Any:
    """Greedy, whatever the model's own generation_config.json says."""
    import transformers

    hf: Any = transformers
    return hf.GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=max_tokens,
        eos_token_id=sorted({*ends(layout.tokenizer, model), layout.stop()}),
        pad_token_id=layout.stop(),
    )


def _written(model: Any, prompts: Sequence[list[int]], settings: Any) -> "torch.Tensor":
    """The tokens behind each prompt: (prompts, most), filled with the stop token."""
    import torch

    width = max(map(len, prompts))
    padded = [[settings.pad_token_id] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    device = next(model.parameters()).device
    ids, seen = torch.tensor(padded, device=device), torch.tensor(mask, device=device)
    virtual = _virtual(model)
    if virtual is None:
        found: torch.Tensor = model.generate(input_ids=ids, attention_mask=seen, generation_config=settings)
        return found[:, width:]
    embedded, seen = _behind(virtual, model.get_input_embeddings()(ids), seen)
    base = model.get_base_model()
    found = base.generate(inputs_embeds=embedded, attention_mask=seen, generation_config=settings)
    return found


def _virtual(model: Any) -> "torch.Tensor | None":
    """Embeddings of virtual tokens that come before every prompt: (tokens, width); of PEFT's methods that have some."""
    config = getattr(model, "active_peft_config", None)
    if config is None or not config.is_prompt_learning or config.peft_type == "PREFIX_TUNING":
        return None
    embeddings: torch.Tensor = model.get_prompt(batch_size=1)[0]
    return embeddings


def _behind(
    virtual: "torch.Tensor", embedded: "torch.Tensor", seen: "torch.Tensor"
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Puts virtual tokens between the padding and the prompts: PEFT puts them before the padding, out of place.

    Args:
        virtual: (tokens, width).
        embedded: (rows, longest, width), padded on the left.
        seen: (rows, longest), 0 where there is padding.

    Returns:
        (rows, tokens + longest, width) and (rows, tokens + longest).
    """
    import torch

    rows = []
    for row, mask in zip(embedded, seen, strict=True):
        pads = int((mask == 0).sum())
        rows.append(torch.cat([row[:pads], virtual.to(row.dtype), row[pads:]]))
    more = seen.new_ones((len(seen), len(virtual)))
    return torch.stack(rows), torch.cat([seen, more], 1)


def _text(layout: Layout, tokens: Sequence[int], stops: Sequence[int]) -> str:
    """Up to the first token that ends an answer."""
    end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
    text: str = layout.tokenizer.decode(tokens[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.strip()
