"""Contrastive search (Su et al. 2022, "A Contrastive Framework for Neural Text Generation", equation 5).

The next token is, of the k likeliest, the one with the greatest

    (1 - alpha) * p(v | text) - alpha * max over the text's tokens x of cos(h_v, h_x)

where h is the last hidden state. Transformers took it out of its library in version 5. Knows no text and no settings.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def choose(probabilities: "torch.Tensor", states: "torch.Tensor", context: "torch.Tensor", alpha: float) -> int:
    """The place of the best candidate.

    Args:
        probabilities: (k,) of the candidates.
        states: (k, width) their last hidden states.
        context: (n, width) those of the text so far.
        alpha: weight of the degeneration penalty.
    """
    import torch.nn.functional as F

    cosines = F.normalize(states.float(), dim=-1) @ F.normalize(context.float(), dim=-1).T  # (k, n)
    penalty = cosines.max(dim=-1).values.to(probabilities.device)
    return int(((1 - alpha) * probabilities - alpha * penalty).argmax())


def step(
    model: Any, cache: Any, scores: "torch.Tensor", context: "torch.Tensor", alpha: float, k: int
) -> tuple[int, "torch.Tensor", "torch.Tensor"]:
    """Chooses the next token and evaluates it.

    Args:
        model: a causal language model.
        cache: what it knows of the text; one token more afterwards.
        scores: (n_vocab,) logits of the next token.
        context: (n, width) last hidden states of the text.
        alpha: weight of the degeneration penalty.
        k: how many candidates there are.

    Returns:
        the token, the logits after it (n_vocab,) and its last hidden state (1, width).
    """
    import torch

    likeliest = scores.softmax(-1).topk(min(k, int(torch.isfinite(scores).sum())))
    count = len(likeliest.indices)
    cache.batch_repeat_interleave(count)
    out = model(
        input_ids=likeliest.indices[:, None].to(model.device),
        past_key_values=cache,
        use_cache=True,
        output_hidden_states=True,
    )
    states = out.hidden_states[-1][:, -1]
    best = choose(likeliest.values, states, context, alpha)
    cache.batch_select_indices(torch.tensor([best], device=model.device))
    return int(likeliest.indices[best]), out.logits[best, -1], states[best : best + 1]
