"""Train, validation and test parts, by document. Looks at nothing but documents and what is nearly equal in them.

A document's part follows from its name and the seed, so that it keeps its part when others are added or removed; only
where the shares would be far off, as with few documents, are some moved.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from finetune.data.duplicates import near_pairs
from finetune.example import TASKS, Example, Part, Task

SLACK = 0.5
"""Of a share: a part with half of it to one and a half is left as the names gave it."""


def split(examples: Sequence[Example], val_share: float, test_share: float = 0.0, seed: int = 42) -> list[Example]:
    """The examples in their order, each with its part; those of one document (`Example.group`) have the same.

    Documents with nearly equal texts go together: their examples would be known before they are asked. Examples that
    are not `train` already stay what they are, and so does their document. Each task's parts are as near to their
    shares of its examples as whole documents allow; where there are two documents or more, a share above 0 gets at
    least one, the test part before validation, and `train` keeps one of each task.

    Args:
        examples: of any parts.
        val_share: of the examples, 0 to 1.
        test_share: likewise.
        seed: of the choice.
    """
    kept = {example.group for example in examples if example.part != "train"}
    clusters = _clusters([example for example in examples if example.group not in kept], seed)
    totals = {task: sum(cluster.size for cluster in clusters if cluster.task == task) for task in TASKS}
    test = _held_out(clusters, test_share, totals)
    turned = [replace(cluster, place=1 - cluster.place) for cluster in clusters if cluster not in test]
    parts: dict[str, Part] = {}
    parts |= {group: "validation" for cluster in _held_out(turned, val_share, totals) for group in cluster.groups}
    parts |= {group: "test" for cluster in test for group in cluster.groups}
    return [replace(example, part=parts.get(example.group, example.part)) for example in examples]


@dataclass(frozen=True, slots=True)
class _Cluster:
    """Documents that go together."""

    groups: tuple[str, ...]
    """Their names, sorted."""
    task: Task
    """Of most of their examples."""
    size: int
    """Examples."""
    place: float
    """From 0 to 1, by name and seed: the test part is taken from the beginning, validation from the end."""


def _held_out(clusters: Sequence[_Cluster], share: float, totals: Mapping[Task, int]) -> set[_Cluster]:
    if share <= 0 or len(clusters) < 2:
        return set()
    ordered = sorted(clusters, key=lambda cluster: (cluster.place, cluster.groups))
    chosen = {
        cluster
        for task in TASKS
        for cluster in _chosen([one for one in ordered if one.task == task], share, share * totals[task])
    }
    return chosen or {min(ordered, key=lambda cluster: cluster.size)}


def _chosen(clusters: Sequence[_Cluster], share: float, wanted: float) -> list[_Cluster]:
    """Those within `share` of the places; if they are far too many or too few examples, the first that fit instead."""
    low, high = wanted * (1 - SLACK), wanted * (1 + SLACK)
    chosen = [cluster for cluster in clusters if cluster.place < share]
    if low <= sum(cluster.size for cluster in chosen) <= high and len(chosen) < len(clusters):
        return chosen
    chosen, size = [], 0
    for cluster in clusters:
        if size < wanted and size + cluster.size <= high and len(chosen) < len(clusters) - 1:
            chosen.append(cluster)
            size += cluster.size
    return chosen


def _clusters(examples: Sequence[Example], seed: int) -> list[_Cluster]:
    parent = {example.group: example.group for example in examples}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    for one, other in near_pairs([_text(example) for example in examples]):
        a, b = root(examples[one].group), root(examples[other].group)
        parent[max(a, b)] = min(a, b)
    tasks: dict[str, Counter[Task]] = defaultdict(Counter)
    for example in examples:
        tasks[root(example.group)][example.task] += 1
    members: dict[str, list[str]] = defaultdict(list)
    for group in parent:
        members[root(group)].append(group)
    return [
        _Cluster(tuple(sorted(groups)), _main(tasks[name]), tasks[name].total(), _place(name, seed))
        for name, groups in members.items()
    ]


def _main(tasks: Mapping[Task, int]) -> Task:
    return max(TASKS, key=lambda task: tasks[task])  # the first of several


def _text(example: Example) -> str:
    """What must not be known from another part: where the answer stands, else what is said."""
    if example.golden is not None:
        return example.passages[example.golden]
    if len(example.passages) == 1:
        return example.passages[0]
    said = [text for pair in (*example.history, *example.steps) for text in pair]
    return "\n".join([*said, example.question, *example.passages, example.answer])


def _place(name: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}\x1f{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
