"""The trainer of a student: its loss is the distance to a teacher's token distributions. Knows no files."""

import random
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from transformers import GenerationConfig

from finetune.compress.distill import Distillation
from finetune.config import Config
from finetune.evaluation.perplexity import evaluating
from finetune.training.forward import labelled
from finetune.training.rows import IGNORED, Row, Tokens, collate, rows
from finetune.training.trainer import AnswerTrainer


def divergence(student: torch.Tensor, teacher: torch.Tensor, beta: float, temperature: float = 1.0) -> torch.Tensor:
    """Generalised Jensen-Shannon divergence D(P‖Q) of teacher P and student Q (Agarwal et al. 2024, GKD, eq. 1).

    M = βP + (1−β)Q; D = β·KL(P‖M) + (1−β)·KL(Q‖M); by convention KL(P‖Q) for β = 0 and KL(Q‖P) for β = 1. Both are
    softmax(logits/T), and D is multiplied with T², so that gradients stay as large whatever T is (Hinton et al. 2015).

    Args:
        student: (tokens, vocabulary) logits.
        teacher: likewise; where one vocabulary is padded to more, the rest of it counts for nothing.
        beta: 0 to 1.
        temperature: above 0; higher ones show more of what the teacher holds for unlikely.

    Returns:
        (tokens,) fp32.
    """
    width = min(student.shape[-1], teacher.shape[-1])
    q = torch.log_softmax(student[..., :width].float() / temperature, -1)
    p = torch.log_softmax(teacher[..., :width].float() / temperature, -1)
    if beta == 0:
        return temperature**2 * _kl(p, q)
    if beta == 1:
        return temperature**2 * _kl(q, p)
    share = torch.tensor(beta, device=q.device)
    m = torch.logaddexp(p + share.log(), q + torch.log1p(-share))
    return temperature**2 * (beta * _kl(p, m) + (1 - beta) * _kl(q, m))


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)


class StudentTrainer(AnswerTrainer):
    """Trains on rows, as its base does, towards a teacher; on the examples' answers or on the student's own."""

    def __init__(
        self,
        model: Any,
        made: Sequence[Row],
        config: Config,
        arguments: Any,
        tokenizer: Any,
        *,
        teacher: Any,
        how: Distillation,
        stop: int,
    ) -> None:
        """As of `AnswerTrainer`, and the teacher; None: the student's own base, without the adapter.

        `stop` is the token that ends an answer.
        """
        self.how, self.stop = how, stop
        self.teacher = teacher if teacher is None else teacher.eval().requires_grad_(False)
        super().__init__(model, made, config, arguments, tokenizer)

    def losses(self, logits: torch.Tensor, labels: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The divergence, mixed with the cross-entropy where the answer is not the student's own."""
        distance = divergence(logits, self._taught(batch), self.how.beta, self.how.temperature)
        distance = distance.masked_fill(labels == IGNORED, 0.0)
        share = 0.0 if "written" in batch else self.how.cross_entropy
        return distance if not share else share * super().losses(logits, labels, batch) + (1 - share) * distance

    def _taught(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The teacher's logits where the student's were computed: (labels, vocabulary)."""
        student = self.accelerator.unwrap_model(self.model)
        model, without = (student, student.disable_adapter()) if self.teacher is None else (self.teacher, nullcontext())
        with evaluating(model), without:
            return labelled(model, batch, model.dtype)[0]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The batches of a step; a share of them with answers that the student writes now, in place of the given."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not self.how.on_policy:
            return batches, count
        batches = [self._rewritten(one) if random.random() < self.how.on_policy else one for one in batches]
        return batches, self._get_num_items_in_batch(batches, device)

    def _rewritten(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        asked = list(prompts(batch))
        answers = self._write([prompt for prompt, _ in asked])
        made = [Tokens(prompt, answer, weight) for (prompt, weight), answer in zip(asked, answers, strict=True)]
        return {**collate([row.as_dict() for row in rows(made, self.config)]), "written": torch.tensor([True])}

    def _write(self, asked: Sequence[list[int]]) -> list[list[int]]:
        """Answers drawn from the student's own distribution, each with the stop token last where it came to it."""
        model = self.accelerator.unwrap_model(self.model)
        longest, device = max(map(len, asked)), next(model.parameters()).device
        ids = torch.tensor([[self.stop] * (longest - len(one)) + one for one in asked], device=device)
        seen = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in asked], device=device)
        settings: Any = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=self.how.max_tokens,
            eos_token_id=self.stop, pad_token_id=self.stop,
        )  # fmt: skip
        with evaluating(model):
            written = model.generate(input_ids=ids, attention_mask=seen, generation_config=settings)
        written = written[:, longest:].tolist()
        return [one[: one.index(self.stop) + 1] if self.stop in one else one for one in written]


def prompts(batch: dict[str, torch.Tensor]) -> Iterator[tuple[list[int], float]]:
    """The examples' prompts that a batch of `collate` holds, and the weights of their losses."""
    ids, labels, weights, own, prefix = (
        batch[n][0].tolist() for n in ("input_ids", "labels", "weights", "own", "prefix")
    )
    first: dict[int, int] = {}
    for place, label in enumerate(labels):
        if label != IGNORED:
            first.setdefault(own[place], place)
    for number, place in first.items():
        seen = (number, prefix[place])
        yield [ids[p] for p in range(place + 1) if own[p] in seen], weights[place]
