"""The recipe's section `training`: the network, its optimizer, the order of the samples, and the workers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pipeline.recipe.section import Section


def _workers(value: Any) -> Any:
    least, most = value if isinstance(value, list | tuple) and len(value) == 2 else (value, value)
    if type(value) is int and value == 0:
        return value
    if type(least) is not int or type(most) is not int or not 1 <= least <= most:
        raise ValueError("needs a number of workers (1, 2, ...), [least, most], or 0 to train in the command's own process")
    return value


Workers = Annotated[int | tuple[int, int], BeforeValidator(_workers)]


class OrderSection(Section):
    """The order of samples in training; defaults depend on batch and image size."""

    lanes: int | None = Field(
        None, ge=1, description="Number of places in the corpus from which each batch takes its samples; must divide the batch."
    )
    groups: int | None = Field(
        None,
        ge=1,
        description="Groups of lanes, which are read and rendered together; must divide lanes. Raised where workers need more.",
    )
    window: int | None = Field(None, ge=1, description="Steps over which a lane's samples are shuffled.")
    tail: Literal["drop", "wrap"] = Field(
        "drop", description="The last incomplete batch: `drop` leaves it out, `wrap` fills it from the epoch's start."
    )


class BackboneSection(Section):
    """The network to pretrain."""

    name: str = Field(
        "resnet18", description="Any torchvision classification network, `resnet10`, or a network that another package adds."
    )
    stem: Literal["auto", "small", "standard"] = Field(
        "auto",
        description="`small` keeps the resolution in the first layers; `auto` means `small` for images of 96 pixels or less.",
    )
    args: dict[str, Any] = Field(default_factory=dict, description="Arguments for the function that builds the network.")


class Optimizer(Section):
    """How weights are updated; the learning rate rises linearly, then falls to zero as a cosine."""

    name: Literal["sgd", "adamw"] = Field("adamw", description="`sgd` with Nesterov's momentum, or `adamw`.")
    lr: float = Field(1e-3, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(0.05, ge=0, description="Weight decay; biases and normalisation layers have none.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of `sgd`.")
    warmup: float = Field(0.05, ge=0, le=1, description="Share of all steps over which the rate rises to its peak.")


class Training(Section):
    """Pretraining on the pretext tasks."""

    backbone: BackboneSection = BackboneSection()
    epochs: int = Field(
        10,
        ge=1,
        description="Passes over the corpus, with new draws in each; in a mixture, an epoch has as many samples as all corpora.",
    )
    batch: int = Field(256, ge=1, description="Global batch, over all workers.")
    optimizer: Optimizer = Optimizer()
    tasks_per_sample: Literal["all", "one"] = Field(
        "all",
        description="Whether a sample trains all tasks, or one drawn for it in each epoch, which is less work.",
    )
    task_weights: Literal["fixed", "uncertainty"] = Field(
        "fixed", description="`fixed`: each task's `weight`; `uncertainty`: that times a learnt factor (Kendall et al. 2018)."
    )
    order: OrderSection = OrderSection()
    workers: Workers = Field(
        1,
        description="Ray Train workers: a number; `[least, most]`: as many as the cluster has room for at the time; `0`: the "
        "command's own process trains, which starts sooner but is not restarted when it dies.",
    )
    resize_seconds: float = Field(
        60.0,
        gt=0,
        description="With `workers: [least, most]`, seconds between checks whether the cluster has room for more workers.",
    )
    cpus: float = Field(1.0, gt=0, description="Logical CPUs of each worker.")
    gpus: float = Field(0.0, ge=0, description="GPUs of each worker.")
    threads: int | None = Field(
        None,
        ge=1,
        description="Network threads of a CPU worker. If not set: the cores that the data actors leave free on this machine; "
        "on a cluster, or where `training.cpus` is set, the worker's CPUs, rounded up.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Precision of matrix products: `auto` means `bfloat16` where the processor or GPU has instructions for it. "
        "Each run first compares it with float32, and computes in float32 where the results disagree.",
    )
    checkpoint_epochs: float = Field(1.0, gt=0, description="Epochs between checkpoints; fractions are allowed.")
    keep: int = Field(2, ge=1, description="Checkpoints kept.")
    log_steps: int = Field(10, ge=1, description="Steps between log lines.")

    @property
    def least_workers(self) -> int:
        """The fewest workers with which the run continues; 0 where the command's own process trains."""
        return self.workers[0] if isinstance(self.workers, tuple) else self.workers

    @property
    def most_workers(self) -> int:
        """The most ranks that the run may have."""
        return self.workers[1] if isinstance(self.workers, tuple) else max(1, self.workers)
