"""How likely a model finds texts and answers: log-probabilities and perplexity. Knows no training and no files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from finetune.errors import DatasetEmpty
from finetune.example import Example
from rag_app.engines.layout import Layout

if TYPE_CHECKING:
    import torch


def of_texts(model: Any, tokenizer: Any, texts: Sequence[str], length: int = 512) -> float:
    """Perplexity over all tokens of texts; each text is cut into windows, whose first tokens are only read.

    Args:
        model: a causal language model of Transformers or PEFT.
        tokenizer: the model's own.
        texts: plain texts; control tokens in them count as such.
        length: most tokens of a window.

    Raises:
        DatasetEmpty: no text has two tokens.
    """
    tokens = [tokenizer(text, verbose=False).input_ids for text in texts]
    windows = [one[start : start + length] for one in tokens for start in range(0, len(one), length)]
    with evaluating(model):
        return _perplexity(log_probs(model, window[:1], window[1:]) for window in windows if len(window) > 1)


def of_answers(model: Any, layout: Layout, examples: Sequence[Example]) -> float:
    """Perplexity over the tokens of the examples' answers, the one that ends each included.

    Raises:
        DatasetEmpty: there is no example.
    """
    with evaluating(model):
        return _perplexity(
            log_probs(model, layout.prompt(one.messages()), layout.answer(one.answer)) for one in examples
        )


def log_probs(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> "torch.Tensor":
    """Log-probability of each token of `answer` behind `prompt`: (len(answer),) float32.

    Logits are computed for the answer alone: the vocabulary is large beside the model.
    """
    import torch

    device = next(model.parameters()).device
    tokens = torch.tensor([[*prompt, *answer]], device=device)
    logits = model(input_ids=tokens, logits_to_keep=len(answer) + 1).logits[0, -len(answer) - 1 : -1]
    kept = tokens[0, len(prompt) :]
    return -torch.nn.functional.cross_entropy(logits.float(), kept, reduction="none")


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """No dropout and no gradients; afterwards the model is in the mode that it was in."""
    import torch

    was = model.training
    model.eval()
    try:
        with torch.no_grad():  # not inference_mode: what a layer keeps from it could not be trained on later
            yield
    finally:
        model.train(was)


def _perplexity(found: "Iterator[torch.Tensor]") -> float:
    import torch

    total, count = 0.0, 0
    for one in found:
        total, count = total + float(one.double().sum()), count + len(one)
    if not count:
        raise DatasetEmpty("there is nothing to compute a perplexity of: give texts of two words or more")
    return float(torch.tensor(-total / count, dtype=torch.float64).exp())  # inf where it is too large for a float
