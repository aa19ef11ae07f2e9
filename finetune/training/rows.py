"""Examples to rows of token ids with labels and masks, and rows to batches. Knows tokenizers, but no model.

A row may hold several examples. Those with the same passages share one prefix, the tokens that their prompts begin
with: each example is a branch that sees the prefix and itself, and counts its positions on from the prefix, so that
loss and gradients are those of separate rows. SQuAD's questions, of which six share their passages, take 4.5 times
fewer tokens so.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from finetune.config import Config
from finetune.errors import RecordInvalid
from finetune.example import Example, refusal

if TYPE_CHECKING:
    import torch

    from rag_app.engines.layout import Layout

IGNORED = -100
"""A label that has no loss."""
BRANCHES = 16
"""Most examples that share a prefix: more would make the rows long, and attention costs their length squared."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """An example in tokens."""

    prompt: list[int]
    answer: list[int]
    """With the stop token last."""
    weight: float = 1.0


@dataclass(slots=True)
class Row:
    """A stretch of tokens that is computed at once; all lists are of its length."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    own: list[int] = field(default_factory=list)
    """Number of the prefix or branch that a token belongs to."""
    prefix: list[int] = field(default_factory=list)
    """Number of the prefix that it sees beside its own; its own again where it is in one."""
    labels: list[int] = field(default_factory=list)
    """The token that follows, where the model shall learn to write it."""
    weights: list[float] = field(default_factory=list)
    """What a label's loss is multiplied with."""
    useful: int = 0
    """Tokens that the examples would take one by one."""
    examples: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def as_dict(self) -> dict[str, Any]:
        """For a `datasets.Dataset`."""
        return {**asdict(self), "length": len(self)}


def tokens(
    examples: Sequence[Example], layout: "Layout", config: Config, skipped: list[tuple[str, str]]
) -> list[Tokens]:
    """Examples in tokens, in their order; with `on_bad_record: skip`, those that are too long are put into `skipped`.

    Raises:
        RecordInvalid: an example is longer than `sequence_len`, or than the model's window.
    """
    found = []
    for example in examples:
        one = _tokens(example, layout, config)
        length = len(one.prompt) + len(one.answer)
        if length <= config.sequence_len:
            found.append(one)
            continue
        reason = f"{length:,} tokens, more than sequence_len {config.sequence_len:,}"
        if config.on_bad_record == "stop":
            raise RecordInvalid(
                f"{example.origin}: {reason}: shorten it, raise sequence_len, or set on_bad_record: skip"
            )
        skipped.append((example.origin, reason))
    return found


def _tokens(example: Example, layout: "Layout", config: Config) -> Tokens:
    weight = example.weight * (config.abstention_weight if refusal(example) else 1.0)
    return Tokens(layout.prompt(example.messages()), layout.answer(example.answer), weight)


def rows(examples: Sequence[Tokens], config: Config) -> list[Row]:
    """Rows for training, in the examples' order as far as sharing and packing allow."""
    shared = config.share_prefixes and config.shares_rows and not config.train_on_inputs and not config.flash_attention
    made = [_row(group, config) for group in (_families(examples, config) if shared else ([one] for one in examples))]
    return _packed(made, config.sequence_len) if config.sample_packing and config.shares_rows else made


def _families(examples: Sequence[Tokens], config: Config) -> Iterator[list[Tokens]]:
    """Examples whose prompts share at least half of the shorter one, a family as long as a row may be."""
    families: list[list[Tokens]] = []
    known: dict[tuple[int, ...], list[list[Tokens]]] = {}
    for one in examples:
        # Prompts that share their passages share their first tokens too: a key finds candidates without comparing all.
        candidates = known.setdefault(tuple(one.prompt[:KEY]), [])
        home = next((family for family in candidates if _fits(family, one, config.sequence_len)), None)
        if home is None:
            home = []
            families.append(home)
            candidates.append(home)
        home.append(one)
        if len(home) >= BRANCHES:
            candidates.remove(home)
    yield from families


KEY = 64
"""Tokens that prompts must begin with to be compared."""


def _fits(family: list[Tokens], one: Tokens, most: int) -> bool:
    same = _common(family[0].prompt, one.prompt)
    if same < KEY or 2 * same < min(len(family[0].prompt), len(one.prompt)):
        return False
    prefix = min(same, *(_common(family[0].prompt, other.prompt) for other in family), len(one.prompt) - 1)
    return prefix + sum(len(each.prompt) + len(each.answer) - prefix for each in (*family, one)) <= most


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # comparing slices is fast, comparing tokens is not
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _row(family: Sequence[Tokens], config: Config) -> Row:
    row = Row()
    # A branch keeps at least its last token, which predicts the first of its answer.
    prefix = min([_common(family[0].prompt, one.prompt) for one in family] + [len(one.prompt) - 1 for one in family])
    if len(family) == 1:
        prefix = 0
    _extend(row, family[0].prompt[:prefix], 0, 0, 0)
    for number, one in enumerate(family, 1 if prefix else 0):
        start = len(row)
        _extend(row, one.prompt[prefix:] + one.answer, prefix, number, 0)
        first = start if config.train_on_inputs else start + len(one.prompt) - prefix - 1
        for place in range(first, len(row) - 1):
            row.labels[place], row.weights[place] = row.ids[place + 1], one.weight
        row.useful += len(one.prompt) + len(one.answer)
        row.examples += 1
    return row


def _extend(row: Row, ids: Sequence[int], position: int, own: int, prefix: int) -> None:
    row.ids += ids
    row.positions += range(position, position + len(ids))
    row.own += [own] * len(ids)
    row.prefix += [prefix] * len(ids)
    row.labels += [IGNORED] * len(ids)
    row.weights += [0.0] * len(ids)


def joined(parts: Sequence[Row]) -> Row:
    """Rows one behind the other, each blind to the others."""
    row = Row()
    for part in parts:
        first = max(row.own, default=-1) + 1
        row.own += [number + first for number in part.own]
        row.prefix += [number + first for number in part.prefix]
        row.ids += part.ids
        row.positions += part.positions
        row.labels += part.labels
        row.weights += part.weights
        row.useful += part.useful
        row.examples += part.examples
    return row


def _packed(parts: Sequence[Row], most: int) -> list[Row]:
    """First fit, in the order given: each row into the first one with room."""
    bins: list[list[Row]] = []
    room: list[int] = []
    for part in parts:
        place = next((number for number, left in enumerate(room) if left >= len(part)), None)
        if place is None:
            bins.append([part])
            room.append(most - len(part))
        else:
            bins[place].append(part)
            room[place] -= len(part)
    return [joined(one) for one in bins]


def collate(features: Sequence[dict[str, Any]]) -> dict[str, "torch.Tensor"]:
    """Rows as one, without padding: tensors of shape (1, tokens); `attention_mask` is left to `mask`."""
    import torch

    row = joined([_read(one) for one in features])
    return {
        "input_ids": torch.tensor([row.ids]),
        "position_ids": torch.tensor([row.positions]),
        "own": torch.tensor([row.own]),
        "prefix": torch.tensor([row.prefix]),
        **_labels([row]),
    }


def collate_padded(features: Sequence[dict[str, Any]]) -> dict[str, "torch.Tensor"]:
    """Rows of one example each, padded on the right: tensors of shape (rows, tokens of the longest)."""
    import torch

    read = [_read(one) for one in features]
    longest = max(map(len, read))
    for row in read:
        missing = longest - len(row)
        row.ids += [0] * missing  # any token: neither attended to nor in the loss
        row.labels += [IGNORED] * missing
        row.weights += [0.0] * missing
    seen = [[1] * len(row.positions) + [0] * (longest - len(row.positions)) for row in read]
    return {
        "input_ids": torch.tensor([row.ids for row in read]),
        "attention_mask": torch.tensor(seen),
        **_labels(read),
    }


def _read(feature: dict[str, Any]) -> Row:
    return Row(**{name: feature[name] for name in Row.__slots__})


def _labels(read: Sequence[Row]) -> dict[str, "torch.Tensor"]:
    import torch

    labels = torch.tensor([row.labels for row in read])
    return {
        "labels": labels,
        "shift_labels": labels,  # under this name the trainer counts them as they are, without shifting once more
        "weights": torch.tensor([row.weights for row in read]),
        "useful": torch.tensor([sum(row.useful for row in read)]),
        "examples": torch.tensor([sum(row.examples for row in read)]),
    }


def mask(own: "torch.Tensor", prefix: "torch.Tensor", dtype: "torch.dtype") -> "torch.Tensor":
    """What each token sees: earlier ones of its own branch and of its prefix.

    Args:
        own: (1, tokens) as in `Row`.
        prefix: (1, tokens).
        dtype: of the result.

    Returns:
        (1, 1, tokens, tokens), 0 where a query (row) sees a key (column), and -inf elsewhere.
    """
    import torch

    seen = (own[0, :, None] == own[0, None, :]) | (prefix[0, :, None] == own[0, None, :])
    return torch.zeros(seen.shape, dtype=dtype, device=own.device).masked_fill_(~seen.tril_(), float("-inf"))[
        None, None
    ]


def lengths(made: Iterable[Row]) -> list[int]:
    """Tokens of each row."""
    return [len(row) for row in made]
