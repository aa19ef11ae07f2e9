"""Which examples an epoch is made of, by the weights of their tasks. Examples in, examples out."""

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

from finetune.errors import ConfigInvalid
from finetune.example import Example, Task


def mixed(examples: Sequence[Example], weights: Mapping[Task, float], seed: int, epoch: int = 0) -> list[Example]:
    """The examples of an epoch, shuffled: the same for the same seed and epoch.

    An epoch is as long as there are examples of the tasks that have a weight. A task gets its weight's share of it;
    where it has fewer examples they come again, where it has more the next epoch goes on with the others, so that over
    the epochs all come equally often. Without weights, every example comes once.

    Args:
        examples: of any tasks.
        weights: by task; a task that is not named is left out, unless none is.
        seed: of the run.
        epoch: from 0.

    Raises:
        ConfigInvalid: no weight is above 0, or a task with a weight has no examples.
    """
    if not weights:
        return _shuffled(examples, f"{seed}/{epoch}")
    by_task: dict[Task, list[Example]] = defaultdict(list)
    for example in examples:
        by_task[example.task].append(example)
    used = {task: weight for task, weight in sorted(weights.items()) if weight > 0}
    if not used or not all(map(math.isfinite, used.values())):
        raise ConfigInvalid("mixture: no task has a weight: give one a number above 0, or leave the mixture out")
    if missing := [task for task in used if not by_task[task]]:
        raise ConfigInvalid(f"mixture: there is no example of the task '{missing[0]}': leave it out, or add some")
    total = sum(len(by_task[task]) for task in used)
    drawn = [
        example
        for task, count in _shares(used, total).items()
        for example in _drawn(by_task[task], count, f"{seed}/{task}", epoch)
    ]
    return _shuffled(drawn, f"{seed}/{epoch}")


def _shares(weights: Mapping[Task, float], total: int) -> dict[Task, int]:
    """Whole numbers by weight that add up to `total`: what is left over goes to the largest remainders."""
    largest = max(weights.values())  # a sum of the weights themselves may be infinite
    whole = sum(weight / largest for weight in weights.values())
    exact = {task: total * (weight / largest / whole) for task, weight in weights.items()}
    counts = {task: int(share) for task, share in exact.items()}
    over = sorted(exact, key=lambda task: counts[task] - exact[task])
    for task in over[: max(total - sum(counts.values()), 0)]:
        counts[task] += 1
    return counts


def _drawn(examples: Sequence[Example], count: int, seed: str, epoch: int) -> list[Example]:
    """Stretch number `epoch`, of `count` examples, of all examples shuffled again and again."""
    begin = epoch * count
    rounds: dict[int, list[Example]] = {}
    found = []
    for place in range(begin, begin + count):
        number, within = divmod(place, len(examples))
        if number not in rounds:
            rounds[number] = _shuffled(examples, f"{seed}/{number}")
        found.append(rounds[number][within])
    return found


def _shuffled(examples: Sequence[Example], seed: str) -> list[Example]:
    found = list(examples)
    random.Random(seed).shuffle(found)
    return found
