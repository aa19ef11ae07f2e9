"""Questions with passages from an index to examples, as RAFT has them (arXiv 2403.10131). Knows no files and no index.

Its passages are what serving shows: the first hits of a search, the golden one among hard negatives. Where the golden
one is not among them, the answer says that the documents do not hold it, which the paper's code does not teach.
Questions that the same passages settle share them, so that training reads those once.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

from finetune.data.answers import Form, answer_in, answered, bare
from finetune.data.found import Found, alike
from finetune.example import Example
from index import Hit
from index.embedding import Progress
from rag_app.prompt import NOT_FOUND

MOST = 12
"""Questions that share their passages, at most."""
SHUFFLED = 0.3
"""Share of the groups whose passages do not stand in the order of the ranking, so that no place is learnt by heart."""

Reason = Literal["answered", "unanswerable", "missed", "taken out"]
"""Why an example has its answer: the passages hold it; no document does; search missed it; it was taken out."""


@dataclass(frozen=True, slots=True)
class Group:
    """Passages in the order of the prompt, and the questions that are asked of them, each with the reason."""

    passages: tuple[Hit, ...]
    members: tuple[tuple[Found, Reason], ...]
    rest: tuple[Hit, ...] = ()
    """Hits beyond them, best first."""

    @property
    def key(self) -> tuple[str, ...]:
        """The same where the passages are, in the same order."""
        return tuple(hit.chunk_id for hit in self.passages)


def as_served(questions: Sequence[Found], k: int) -> list[Group]:
    """Every question alone, with the very passages that serving shows: for validation and test."""
    groups = []
    for found in questions:
        passages = found.hits[:k]
        held = any(map(found.holds, passages))  # by whatever passage: the answer is right
        reason = "answered" if held else _reason(found, passages)
        groups += [Group(passages, ((found, reason),), found.hits[k:])] if reason else []
    return groups


def shared(
    questions: Sequence[Found],
    k: int,
    *,
    rounds: int = 1,
    most: int = MOST,
    insert_golden: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Group]:
    """Every question with passages that settle it, in as few groups as a greedy cover finds: for training.

    Args:
        questions: of one part.
        k: passages of a group: those that one of its questions is served with.
        rounds: how often a question occurs at most, each time with other passages.
        most: questions of a group; 1 leaves each with its own passages.
        insert_golden: puts the passage with the answer in where search missed it.
        seed: of the order among equals, and of the passages'.
        progress: told how far it is, as 'grouping'.
    """
    draws = random.Random(seed)
    order = list(questions)
    draws.shuffle(order)
    own = [found.own(k, insert_golden) for found in order]
    settles = []
    at_home = _at_home(order) if most > 1 else {}
    for n in range(len(order)):
        if progress:
            progress("grouping", n, len(order))
        settles.append(_settles(n, order, own[n], at_home))
    used: set[tuple[int, frozenset[str]]] = set()
    groups: list[Group] = []
    for _ in range(rounds):
        for leader, members in _cover(own, settles, most, used):
            passages = list(own[leader])
            if draws.random() < SHUFFLED:
                draws.shuffle(passages)
            rest = tuple(hit for hit in order[leader].hits if hit not in passages)
            groups.append(Group(tuple(passages), tuple((order[n], settles[leader][n]) for n in members), rest))
    return groups


def _at_home(order: Sequence[Found]) -> dict[str, list[int]]:
    """The questions that a passage may settle, by its id."""
    at_home: dict[str, list[int]] = {}
    for n, found in enumerate(order):
        for chunk in found.home:
            at_home.setdefault(chunk, []).append(n)
    return at_home


def _settles(
    leader: int, order: Sequence[Found], passages: tuple[Hit, ...], at_home: dict[str, list[int]]
) -> dict[int, Reason]:
    """The questions that the passages of one of them settle and how, its own first; none where its own is not."""
    reason = _reason(order[leader], passages)
    if reason is None:
        return {}
    these: dict[int, Reason] = {leader: reason}
    for other in dict.fromkeys(n for hit in passages for n in at_home.get(hit.chunk_id, ())):
        if other != leader and order[other].settled_by(passages):
            these[other] = "answered" if order[other].asked.golds else "unanswerable"
    return these


def _reason(found: Found, passages: Sequence[Hit]) -> Reason | None:
    """Of a question with its own passages; None where they hold a part of what the answer rests on."""
    if not found.asked.golds:
        return "unanswerable"
    if not any(map(found.is_golden, passages)):
        return "missed"
    return "answered" if found.complete(passages) else None


def _cover(
    own: Sequence[tuple[Hit, ...]],
    settles: Sequence[dict[int, Reason]],
    most: int,
    used: set[tuple[int, frozenset[str]]],
) -> Iterator[tuple[int, list[int]]]:
    """Leaders with the questions that their passages settle, the fullest groups first; each question once.

    `used` has the questions with passages that they had in earlier rounds, and is added to.
    """
    keys = [frozenset(hit.chunk_id for hit in passages) for passages in own]
    left = set(range(len(own)))

    def new(leader: int) -> list[int]:
        return [n for n in settles[leader] if n in left and (n, keys[leader]) not in used][:most]

    heap = [(-len(settles[n]), n) for n in range(len(own))]
    heapq.heapify(heap)
    while heap:
        gain, leader = heapq.heappop(heap)
        members = new(leader)
        if leader not in members:
            continue
        if heap and (-len(members), leader) > heap[0] and -gain > len(members):
            heapq.heappush(heap, (-len(members), leader))  # it settles fewer than when it was pushed
            continue
        left.difference_update(members)
        used.update((n, keys[leader]) for n in members)
        yield leader, members


def without_golden(groups: Sequence[Group], share: float, *, seed: int = 0) -> list[Group]:
    """Groups like some of these, with a golden passage taken out: as many as bring refusals up to a share of all.

    What takes its place are the next hits. None of the passages holds an answer, so that refusing is right.
    """
    asked = [reason for group in groups for _, reason in group.members]
    wanted = ceil((share * len(asked) - sum(reason != "answered" for reason in asked)) / (1 - share))
    draws = random.Random(seed)
    twins: list[Group] = []
    for group in draws.sample(list(groups), len(groups)):
        if wanted <= 0:
            break
        if twin := _without(group, wanted):
            twins.append(twin)
            wanted -= len(twin.members)
    return twins


def _without(group: Group, most: int) -> Group | None:
    """The group without the passage that answers most of its questions, and only with these."""
    goldens = [
        (found, frozenset(hit.chunk_id for hit in group.passages if found.is_golden(hit) or found.holds(hit)))
        for found, reason in group.members
        if reason == "answered" and found.located
    ]
    if not goldens:
        return None
    gone, _ = Counter(places for _, places in goldens).most_common(1)[0]
    members = [found for found, places in goldens if places == gone][:most]
    passages = [hit for hit in group.passages if hit.chunk_id not in gone]
    for hit in group.rest:
        held = any(found.holds(hit) or found.is_golden(hit) for found in members)
        if len(passages) < len(group.passages) and not held and not any(alike(hit, other) for other in passages):
            passages.append(hit)
    return Group(tuple(passages), tuple((found, "taken out") for found in members)) if passages else None


def examples(groups: Sequence[Group], form: Form, dropped: Callable[[Found, str], None]) -> Iterator[Example]:
    """An example for each question of each group, in their order.

    Args:
        groups: passages and questions.
        form: of the answers.
        dropped: told of questions that give no example, and why.
    """
    times: Counter[str] = Counter()
    for group in groups:
        for found, reason in group.members:
            example = _example(found, reason, group.passages, form)
            if example is None:
                dropped(found, "its quotation cannot be verified")
                continue
            times[example.id] += 1
            name = example.id if times[example.id] == 1 else f"{example.id}~{times[example.id]}"
            yield replace(example, id=name, part=found.part, document=found.document)


def _example(found: Found, reason: Reason, passages: Sequence[Hit], form: Form) -> Example | None:
    asked, texts = found.asked, tuple(hit.text for hit in passages)
    plain = Example(
        asked.id, "question_answering", asked.question, NOT_FOUND, texts, answerable=False, origin=asked.origin
    )
    if reason != "answered":
        return plain
    golden = next(n for n, hit in sorted(enumerate(passages), key=lambda one: not found.is_golden(one[1])))
    if not found.is_golden(passages[golden]):  # only as served: a passage of another document holds the answer
        golden = next(n for n, hit in enumerate(passages) if found.holds(hit))
    span = answer_in(texts[golden], asked.golds) if found.located else None
    answer = answered(form, texts[golden], span, golden + 1) if span else bare(asked.golds[0])
    if answer is None:
        return None
    references = () if asked.golds == (answer,) else asked.golds
    return replace(plain, answer=answer, answerable=True, references=references, golden=golden)
