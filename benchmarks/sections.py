"""Which contenders are compared on which work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.photos import Photos
from benchmarks.work import TASKS, Job

PEERS = {
    "DataLoader + webdataset + torchvision": "dataloader",
    "Ray Data + torchvision": "ray_torchvision",
    "Ray Data + PIL": "ray_pil",
    "DALI alone": "dali",
    "SPDL": "spdl",
}
VIEWS = {"DataLoader + torchvision v2": "views_torchvision", "DataLoader + lightly": "views_lightly"}
FEATURES = {"Ray Data, batch inference": "features_ray", "Daft": "features_daft"}
EXPERTS = {"by hand, torchvision": "expert_torchvision", "by hand, OpenCV": "expert_opencv"}
LOOP, RAY, RAY_TRAINER, DISK = "ours, plain loop", "ours, Ray Data", "ours, Ray Data, placement trainer", "ours, to disk"
RAY_ONE, MEMORY, FLOOR = "ours, Ray Data, one actor", "ours, photos in memory", "libjpeg-turbo, whole photos"
REDUCED = (("image", {"reduced": True}),)
TRAINER = (("placement", "trainer"),)
PLAIN, EMBED, EMBED_ONE = "plain loop, decode and network", "ours, embed", "ours, embed, one actor"
FAST = (("precision", "bfloat16"),)
LARGER = (("order", {"groups": 2, "window": 2}),)
"""Blocks of 256 images; see docs/tuning.md."""


@dataclass(frozen=True)
class Entry:
    """A contender in a section: its module, its job, and how many cores it may use."""

    module: str
    job: Job
    cores: int

    @property
    def host(self) -> str:
        """The process that it runs in: ours on Ray share one Ray, and the peers on Ray another."""
        if "ray" in self.module or self.module in ("ours_disk", "features_ours"):
            return "ours on Ray" if "ours" in self.module else "peers on Ray"
        return self.module


def sections(photos: dict[str, Photos], cores: int) -> dict[str, dict[str, Entry]]:
    """All sections: name -> contender -> entry."""

    def entry(module: str, of: str, tasks: Sequence[str], of_cores: int = cores, **changes: Any) -> Entry:
        job = Job(photos[of].shards, 32 if of == "32x32" else 224, tuple(tasks), workers=of_cores)
        return Entry(module, replace(job, **changes), of_cores)

    small, large, tiles = "500x375", "1600x1200", "32x32"
    one = TASKS[:1]
    many = {"batch": 256, "options": (("global_batch", 1024),)}
    return {
        "one crop, 500x375": {
            FLOOR: entry("floor", small, (), 1),
            MEMORY: entry("ours_memory", small, (), 1),
            LOOP: entry("ours_loop", small, (), 1),
            RAY_ONE: entry("ours_ray", small, (), 1, options=LARGER),
        },
        "one pair, 500x375": {
            **{name: entry(module, small, one) for name, module in PEERS.items()},
            LOOP: entry("ours_loop", small, one, 1),
            RAY: entry("ours_ray", small, one, options=LARGER),
            RAY_TRAINER: entry("ours_ray", small, one, options=TRAINER),
        },
        "four pairs, 500x375": {
            **{name: entry(module, small, TASKS) for name, module in PEERS.items()},
            **{name: entry(module, small, TASKS) for name, module in EXPERTS.items()},
            LOOP: entry("ours_loop", small, TASKS, 1),
            RAY_ONE: entry("ours_ray", small, TASKS, 1, options=LARGER),
            RAY: entry("ours_ray", small, TASKS, options=LARGER),
            RAY_TRAINER: entry("ours_ray", small, TASKS, options=TRAINER),
            DISK: entry("ours_disk", small, TASKS),
        },
        **{
            f"views of {task}, 500x375": {
                **{name: entry(module, small, (task,)) for name, module in VIEWS.items()},
                LOOP: entry("ours_loop", small, (task,), 1),
                RAY: entry("ours_ray", small, (task,)),
                RAY_TRAINER: entry("ours_ray", small, (task,), options=TRAINER),
            }
            for task in ("simclr", "swav")
        },
        "one crop, 1600x1200": {
            FLOOR: entry("floor", large, (), 1),
            MEMORY: entry("ours_memory", large, (), 1),
            f"{MEMORY}, reduced": entry("ours_memory", large, (), 1, options=REDUCED),
            "DataLoader + webdataset + torchvision": entry("dataloader", large, ()),
            "DALI alone": entry("dali", large, ()),
            f"{RAY}, reduced": entry("ours_ray", large, (), options=REDUCED + LARGER),
        },
        "one pair, 32x32": {
            "DataLoader + webdataset + torchvision": entry("dataloader", tiles, one, **many),
            "DALI alone": entry("dali", tiles, one, **many),
            LOOP: entry("ours_loop", tiles, one, 1, **many),
            RAY: entry("ours_ray", tiles, one, **many),
        },
        **{
            f"features of {network} at {pixels}, {size}": {
                **{name: entry(module, size, (), size=pixels, network=network) for name, module in FEATURES.items()},
                EMBED: entry("features_ours", size, (), size=pixels, network=network),
                PLAIN: entry("features_loop", size, (), 1, size=pixels, network=network),
                EMBED_ONE: entry("features_ours", size, (), 1, size=pixels, network=network),
                f"{EMBED_ONE}, bfloat16": entry("features_ours", size, (), 1, size=pixels, network=network, options=FAST),
            }
            for network, pixels, size in (("resnet10", 64, small), ("resnet10", 32, tiles), ("resnet18", 224, small))
        },
    }
