"""The recipe's section `training`: the network, its optimizer, the order of the samples, and the workers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pipeline.recipe.section import Section, without_defaults


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
        "drop",
        description="The last incomplete batch: `drop` leaves it out, `wrap` fills it from the epoch's start; where the corpus "
        "is small, a photo may be in it twice.",
    )


class BackboneSection(Section):
    """The network to pretrain; a text in its place is its `name`."""

    provider: Literal["torchvision", "timm"] = Field(
        "torchvision", description="The library whose networks `name` means; `timm` needs the `export` extra."
    )
    name: str = Field(
        "resnet18",
        description="Any torchvision classification network, `resnet10`, or a network that another package adds; with `provider: "
        "timm` any of timm's that torch.fx can trace.",
    )
    stem: Literal["auto", "small", "standard"] = Field(
        "auto",
        description="`small` keeps the resolution in the first layers; `auto` means `small` for images of 96 pixels or less.",
    )
    args: dict[str, Any] = Field(default_factory=dict, description="Arguments for the function that builds the network.")
    weights: str | None = Field(
        None,
        description="Weights from which pretraining starts: a run's `backbone.pt`, or a `.pth` or `.safetensors` under the "
        "library's own names; a path or URL that every machine reaches. If not set: random ones.",
    )

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _used(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults(self, serialize(self), "provider", "weights")

    def architecture(self) -> dict[str, Any]:
        """What network it is, as plain data, whatever weights it starts from."""
        return self.model_copy(update={"weights": None}).model_dump(mode="json")


class Optimizer(Section):
    """How weights are updated; the learning rate rises linearly, then falls to zero as a cosine."""

    name: Literal["sgd", "lars", "adamw"] = Field(
        "adamw", description="`sgd` with Nesterov's momentum, `lars` for batches of thousands (You et al. 2017), or `adamw`."
    )
    lr: float = Field(1e-3, gt=0, description="Peak learning rate.")
    scale: Literal["none", "linear", "sqrt"] = Field(
        "none", description="Multiplies the rate by batch / 256 (`linear`), or by the square root of that (`sqrt`)."
    )
    weight_decay: float | None = Field(
        None,
        ge=0,
        description="Weight decay; biases and normalisation layers have none. If not set: 0.05 for adamw, 1e-4 for sgd, 1e-6 "
        "for lars.",
    )
    weight_decay_end: float | None = Field(
        None, ge=0, description="Weight decay at the end of the run, to which it goes along half a cosine. If not set: it stays."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of `sgd` and `lars`.")
    clip: float | None = Field(
        None, gt=0, description="Greatest norm of the gradient of all weights together. If not set: the gradient is not clipped."
    )
    warmup: float = Field(0.05, ge=0, le=1, description="Share of all steps over which the rate rises to its peak.")

    @model_validator(mode="before")
    @classmethod
    def _usual_decay(cls, value: Any) -> Any:
        usual = {"sgd": 1e-4, "lars": 1e-6, "adamw": 0.05}.get(value.get("name", "adamw")) if isinstance(value, dict) else None
        return value if usual is None or value.get("weight_decay") is not None else {**value, "weight_decay": usual}

    @model_serializer(mode="wrap")
    def _used(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults(self, serialize(self), "scale", "weight_decay_end", "clip")


class Training(Section):
    """Pretraining on the pretext tasks."""

    backbone: BackboneSection = BackboneSection()
    epochs: int = Field(
        10,
        ge=1,
        description="Passes over the corpus, with new draws in each; in a mixture, an epoch has as many samples as all corpora.",
    )
    batch: int = Field(256, ge=1, description="Global batch, over all workers.")
    accumulate: int = Field(
        1,
        ge=1,
        description="Number of parts in which each worker computes its share of a batch, one after another, which takes less "
        "memory. The gradient is that of the whole batch, but batch normalisation takes the statistics of a part. Refused "
        "for methods whose loss compares samples of the batch.",
    )
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
    batch_norm: Literal["local", "global"] | None = Field(
        None,
        description="Batch normalisation over each worker's samples, or over those of all workers, which needs an exchange a "
        "layer. If not set: `global` where a task compares views, `local` elsewhere.",
    )
    checkpoint_epochs: float = Field(1.0, gt=0, description="Epochs between checkpoints; fractions are allowed.")
    keep: int = Field(2, ge=1, description="Checkpoints kept.")
    log_steps: int = Field(10, ge=1, description="Steps between log lines.")

    @model_serializer(mode="wrap")
    def _used(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults(self, serialize(self), "batch_norm", "accumulate")

    @property
    def least_workers(self) -> int:
        """The fewest workers with which the run continues; 0 where the command's own process trains."""
        return self.workers[0] if isinstance(self.workers, tuple) else self.workers

    @property
    def most_workers(self) -> int:
        """The most ranks that the run may have."""
        return self.workers[1] if isinstance(self.workers, tuple) else max(1, self.workers)
