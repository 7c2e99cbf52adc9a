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
    """The order of training; the defaults follow from batch and image size."""

    lanes: int | None = Field(None, ge=1, description="Places of the corpus that one batch is drawn from; must divide the batch.")
    groups: int | None = Field(
        None, ge=1, description="Groups of lanes, the units of work; must divide lanes. More are made where workers need them."
    )
    window: int | None = Field(None, ge=1, description="Steps over which a lane's samples are shuffled.")
    tail: Literal["drop", "wrap"] = Field(
        "drop", description="Last incomplete batch: left out, or filled from the epoch's start."
    )


class BackboneSection(Section):
    """The network whose features are wanted."""

    name: str = Field("resnet18", description="Any torchvision classification model, or `resnet10`.")
    stem: Literal["auto", "small", "standard"] = Field(
        "auto", description="`small` keeps resolution in the first layers; `auto` takes it for images of 96 pixels or less."
    )
    args: dict[str, Any] = Field(default_factory=dict, description="Arguments for the model's builder.")


class Optimizer(Section):
    """How weights are updated; the rate follows a linear warm-up and then a cosine to zero."""

    name: Literal["sgd", "adamw"] = Field("adamw", description="`sgd` with Nesterov's momentum, or `adamw`.")
    lr: float = Field(1e-3, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(0.05, ge=0, description="Decay of weights; biases and norms are not decayed.")
    momentum: float = Field(0.9, ge=0, lt=1, description="For sgd.")
    warmup: float = Field(0.05, ge=0, le=1, description="Share of all steps over which the rate rises to its peak.")


class Training(Section):
    """Pretraining on the pretext tasks."""

    backbone: BackboneSection = BackboneSection()
    epochs: int = Field(
        10,
        ge=1,
        description="Times that the corpus is gone through, drawn anew each time; in a mixture, times its number of samples.",
    )
    batch: int = Field(256, ge=1, description="Global batch, over all workers.")
    optimizer: Optimizer = Optimizer()
    tasks_per_sample: Literal["all", "one"] = Field(
        "all",
        description="Whether a sample trains all tasks, or one that is drawn for it in each epoch, at a fraction of the work.",
    )
    task_weights: Literal["fixed", "uncertainty"] = Field(
        "fixed", description="`fixed`: the tasks' `weight`; `uncertainty`: these times what is learnt (Kendall et al. 2018)."
    )
    order: OrderSection = OrderSection()
    workers: Workers = Field(
        1,
        description="Ray Train workers: a number, or `[least, most]`, as many as the cluster has room for at the time; or `0`: "
        "the command's own process trains, which starts sooner, and is not restarted when it dies.",
    )
    resize_seconds: float = Field(
        60.0, gt=0, description="Where the number of workers is open: seconds between looks for room for more of them."
    )
    cpus: float = Field(1.0, gt=0, description="Logical CPUs of each worker.")
    gpus: float = Field(0.0, ge=0, description="GPUs of each worker.")
    threads: int | None = Field(
        None,
        ge=1,
        description="Network threads of a CPU worker; else what the data actors leave of this machine, or, where "
        "`training.cpus` is set and on a cluster, as many as its CPUs, rounded up.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Of matrix products: `auto` takes `bfloat16` where the processor or GPU has instructions for it. Each run "
        "compares it with float32 first, and computes in float32 where they disagree.",
    )
    checkpoint_epochs: float = Field(1.0, gt=0, description="Epochs between checkpoints; fractions are allowed.")
    keep: int = Field(2, ge=1, description="Checkpoints kept.")
    log_steps: int = Field(10, ge=1, description="Steps between log lines.")

    @property
    def least_workers(self) -> int:
        """The fewest workers that the run goes on with; 0 where the command's own process trains."""
        return self.workers[0] if isinstance(self.workers, tuple) else self.workers

    @property
    def most_workers(self) -> int:
        """The most ranks that the run grows to."""
        return self.workers[1] if isinstance(self.workers, tuple) else max(1, self.workers)
