"""`bench` names the limiting stage, whichever it is, and what to change."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.recipe import parse_recipe
from trainers.planning.bench import Stage, limiting


def stages(
    read_busy: float = 1.0, read_cpu: float = 1.0, file: float = 100_000, pair: float = 300_000, tasks: float = 0.0
) -> list[Stage]:
    """Stages of 1,000 images with a second of rendering; the training worker spent `tasks` of two seconds on the tasks."""

    def stage(name: str, busy: float, cpu: float, leaving: float, waiting: float = 0.0) -> Stage:
        return Stage(name, 1000, busy, waiting, (busy, busy, busy), cpu, leaving)

    return [
        stage("read", read_busy, read_cpu, file),
        stage("check", 0.02, 0.02, file),
        stage("render", 2.0, 2.0, pair),
        *([stage("tasks", tasks, tasks, pair, 2.0 - tasks)] if tasks else []),
        stage("receive", 0.1, 0.1, pair),
        stage("step", 5.0, 5.0, 0.0),
    ]


@pytest.mark.parametrize(
    ("sections", "found", "rates", "words"),
    [
        ({}, stages(), (900, 850, 50), ["The network limits", "850", "50", "training workers"]),
        ({}, stages(), (900, 400, 2000), ["transfer to the trainer", "300 kB", "placement.render: trainer"]),
        ({}, stages(file=400_000), (900, 400, 2000), ["transfer to the trainer", "fewer actors"]),
        ({}, stages(tasks=0.5), (900, 400, 2000), ["transfer to the trainer", "300 kB"]),
        ({}, stages(tasks=1.8), (900, 400, 2000), ["The tasks limit", "400", "training.threads"]),
        ({}, stages(tasks=1.8), (900, 850, 50), ["The network limits"]),
        (
            {"placement": {"render": "trainer"}},
            stages(),
            (900, 400, 2000),
            ["transfer to the trainer", "100 kB", "training.order.groups"],
        ),
        ({}, stages(read_busy=8.0, read_cpu=0.5), (900, 850, 2000), ["Reading limits", "storage", "placement.actors"]),
        ({}, stages(read_busy=8.0, read_cpu=8.0), (900, 850, 2000), ["Rendering limits", "placement.actors"]),
        ({}, stages(file=500_000), (900, 850, 2000), ["Rendering limits", "image.reduced: true"]),
        ({"placement": {"render": "trainer"}}, stages(), (900, 850, 2000), ["Rendering limits", "placement.threads"]),
    ],
)
def test_the_verdict_names_the_limit_and_the_remedy(
    sections: dict[str, Any], found: list[Stage], rates: tuple[float, float, float], words: list[str]
) -> None:
    recipe = parse_recipe({"name": "a", "seed": 0, "corpus": {"shards": "x"}, **sections})
    verdict = limiting(recipe, found, *rates)
    assert [word for word in words if word not in verdict] == []
    assert ("image.reduced" in verdict) == ("image.reduced: true" in words)
