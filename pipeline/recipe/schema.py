"""The recipe: the one validated document that describes a run, section by section.

Every field carries its description, from which the recipe reference in the docs is made.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from pipeline.recipe.suggest import unknown_name
from pipeline.tasks import Task, registry


class Section(BaseModel):
    """A part of the recipe: unknown keys are refused, and nothing changes after it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _shards(value: Any) -> Any:
    one = value if isinstance(value, list) else [value]
    if not one or not all(isinstance(url, str) and url.strip() for url in one):
        raise ValueError("needs a path, a pattern or a URL, or a list of these")
    return value


def _workers(value: Any) -> Any:
    least, most = value if isinstance(value, list | tuple) and len(value) == 2 else (value, value)
    if type(value) is int and value == 0:
        return value
    if type(least) is not int or type(most) is not int or not 1 <= least <= most:
        raise ValueError("needs a number of workers (1, 2, ...), [least, most], or 0 to train in the command's own process")
    return value


def _budget(value: Any) -> Any:
    number = float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value  # YAML takes 1e-3 for a text
    if (type(number) is int and number >= 0) or (isinstance(number, float) and 0 <= number < 1):
        return number
    raise ValueError("needs a count of samples (0, 1, 2, ...) or a share of them (at least 0, below 1)")


_NUMBER = re.compile(r"\d+(\.\d*)?[eE][-+]?\d+")
Workers = Annotated[int | tuple[int, int], BeforeValidator(_workers)]
Shards = Annotated[str | list[str], BeforeValidator(_shards)]
Budget = Annotated[int | float, BeforeValidator(_budget)]


def _without_defaults(section: Section, document: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The canonical form without newer keys that are not set: a recipe of before reads as it did."""
    unset = {key for key in keys if getattr(section, key) == type(section).model_fields[key].default}
    return {key: value for key, value in document.items() if key not in unset}


class CorpusPart(Section):
    """One corpus of a mixture."""

    shards: Shards = Field(description="Its shards, as in `corpus.shards`.")
    weight: float = Field(1.0, gt=0, description="Its share of the samples of an epoch, relative to the other weights.")


class CorpusSection(Section):
    """The unlabelled images: one corpus, or a mixture of several."""

    shards: Shards = Field(
        default=[],
        description="Folder, pattern (braces, globs) or list of WebDataset shards, as paths or URLs (s3://, gs://, http://).",
    )
    mix: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], CorpusPart] = Field(
        default_factory=dict,
        description="In place of `shards`: several corpora by name, each with `shards` and `weight`, its share of the samples.",
    )
    image: str | None = Field(
        None, description="Extension of the member to take where a sample has several images; else the first one."
    )
    index: str | None = Field(
        None,
        description="Folder, path or URL, for the index of shards whose own folder has none and cannot be written, such as over "
        "http; every machine must reach it. Else they are scanned by each process that reads them.",
    )
    frames: int | None = Field(
        None,
        ge=2,
        le=64,
        description="How many images of each sample are the frames of a clip, in the natural order of their names "
        "(`clip7.0.jpg`, `clip7.1.jpg`, ...). Tasks of one image are given the first.",
    )

    keys: Literal["name", "shard"] = Field(
        "name",
        description="What a sample's chance depends on: its `name` (its key), or `shard` and name, for shards that are numbered "
        "alike (`000000.jpg` in each). Another choice draws other pairs.",
    )

    @model_validator(mode="after")
    def _one_or_several(self) -> CorpusSection:
        if bool(self.shards) == bool(self.mix):
            raise ValueError("needs `shards`, or `mix` with several corpora")
        return self

    @model_serializer(mode="wrap")
    def _without_the_other(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The canonical form names what is used: a recipe of single images reads as it did before there were others."""
        unused = {"shards" if self.mix else "mix", *(name for name in ("frames", "index") if getattr(self, name) is None)}
        if self.keys == "name":
            unused.add("keys")
        return {name: value for name, value in serialize(self).items() if name not in unused}

    def lists(self) -> list[Shards]:
        """The shards of each corpus."""
        return [part.shards for part in self.mix.values()] if self.mix else [self.shards]


class Image(Section):
    """What is cut from each photo, once, for all tasks."""

    size: int = Field(224, ge=8, le=2048, description="Side of the square crop, pixels.")
    crop: Literal["random", "center"] = Field(
        "random",
        description="`random`: random resized crop; `center`: the largest centred square. Evaluation is always `center`.",
    )
    scale: tuple[float, float] = Field((0.2, 1.0), description="Share of the photo's area that a random crop covers.")
    ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="Width over height of a random crop before it is made square.")
    flip: bool = Field(True, description="Mirror left and right with probability one half.")
    max_pixels: int = Field(100_000_000, ge=1, description="Photos of more pixels are quarantined, not decoded.")
    reduced: bool = Field(
        False,
        description="Decode a JPEG at 1/2, 1/4 or 1/8 of its size where the crop stays smaller: faster on photos several times "
        "as large as the crop, and pixels a level or two apart. Engine `cpu` only.",
    )
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="Channel means for the network's input, of 1.")
    std: tuple[float, float, float] = Field((0.229, 0.224, 0.225), description="Channel standard deviations, of 1.")

    @model_validator(mode="after")
    def _ranges(self) -> Image:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale {list(self.scale)}: needs 0 < least <= most <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio {list(self.ratio)}: needs 0 < least <= most")
        if min(self.std) <= 0:
            raise ValueError(f"std {list(self.std)}: every entry must be above 0")
        return self


class Placement(Section):
    """Where pairs are rendered, and with what."""

    render: Literal["workers", "trainer"] = Field(
        "workers",
        description="`workers`: Ray Data actors render and send pixels; `trainer`: encoded bytes are sent and rendered "
        "beside the network.",
    )
    actors: int = Field(1, ge=1, description="Number of rendering (or reading) actors.")
    cpus: float = Field(1.0, gt=0, description="Logical CPUs of each actor.")
    gpus: float = Field(0.0, ge=0, description="GPUs, or a fraction of one, of each actor.")
    threads: int = Field(1, ge=1, description="Decoding threads of each actor.")


class Failures(Section):
    """What may go wrong before the run stops."""

    budget: Budget = Field(
        0.01, description="Quarantined samples allowed: a count (integer) or a share of the samples seen (below 1)."
    )
    restarts: int = Field(3, ge=0, description="How often a run restarts from its checkpoint after a worker or node is lost.")
    stall_seconds: float = Field(
        600.0, gt=0, description="How long a stage may stand still while training waits for a batch; then an error names it."
    )
    collapse: Literal["stop", "warn", "off"] = Field(
        "stop",
        description="What is done where a task that compares views collapses, so that all photos look alike to the network.",
    )

    @model_serializer(mode="wrap")
    def _used(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(self, serialize(self), "collapse")


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

    name: Literal["sgd", "lars", "adamw"] = Field(
        "adamw", description="`sgd` with Nesterov's momentum, `lars` for batches of thousands (You et al. 2017), or `adamw`."
    )
    lr: float = Field(1e-3, gt=0, description="Peak learning rate.")
    scale: Literal["none", "linear", "sqrt"] = Field(
        "none", description="Multiplies the rate by batch / 256 (`linear`), or by the root of that (`sqrt`)."
    )
    weight_decay: float | None = Field(
        None,
        ge=0,
        description="Decay of weights; biases and norms are not decayed. Else 0.05 for adamw, 1e-4 for sgd, 1e-6 for lars.",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="For sgd and lars.")
    warmup: float = Field(0.05, ge=0, le=1, description="Share of all steps over which the rate rises to its peak.")
    clip: float | None = Field(None, gt=0, description="Greatest norm of the gradient of all weights together; else any.")

    @model_validator(mode="before")
    @classmethod
    def _usual_decay(cls, value: Any) -> Any:
        usual = {"sgd": 1e-4, "lars": 1e-6, "adamw": 0.05}.get(value.get("name", "adamw")) if isinstance(value, dict) else None
        return value if usual is None or value.get("weight_decay") is not None else {**value, "weight_decay": usual}

    @model_serializer(mode="wrap")
    def _used(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(self, serialize(self), "scale", "clip")


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
    batch_norm: Literal["local", "global"] | None = Field(
        None,
        description="Batch normalisation over each worker's samples, or over those of all workers, which takes an exchange a "
        "layer; else `global` where a task compares views, and `local` elsewhere.",
    )
    checkpoint_epochs: float = Field(1.0, gt=0, description="Epochs between checkpoints; fractions are allowed.")
    keep: int = Field(2, ge=1, description="Checkpoints kept.")
    log_steps: int = Field(10, ge=1, description="Steps between log lines.")

    @model_serializer(mode="wrap")
    def _used(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(self, serialize(self), "batch_norm")

    @property
    def least_workers(self) -> int:
        """The fewest workers that the run goes on with; 0 where the command's own process trains."""
        return self.workers[0] if isinstance(self.workers, tuple) else self.workers

    @property
    def most_workers(self) -> int:
        """The most ranks that the run grows to."""
        return self.workers[1] if isinstance(self.workers, tuple) else max(1, self.workers)


class Downstream(Section):
    """The labelled task that shows what the features are worth."""

    train: Shards = Field(description="Labelled shards to learn from.")
    test: Shards = Field(description="Labelled shards to test on.")
    labels: float = Field(1.0, gt=0, le=1, description="Share of the training labels used, the same of each class.")
    layer: str | None = Field(
        None, description="Layer whose pooled features are probed, such as `layer3`; else the last that was trained."
    )
    epochs: int = Field(20, ge=1, description="Epochs of fine-tuning.")
    batch: int = Field(128, ge=1, description="Global batch, over all workers.")
    optimizer: Optimizer = Optimizer(lr=5e-4)
    neighbours: int = Field(20, ge=1, description="k of the k-nearest-neighbour vote.")


class Render(Section):
    """How pairs lie on disk, for `pseudolabel render`."""

    epochs: int = Field(1, ge=1, le=1000, description="Drawings of each image.")
    format: Literal["webdataset", "parquet"] = Field("webdataset", description="Tars of files, or Parquet tables of tensors.")
    image: Literal["png", "webp", "jpg", "npy"] | None = Field(
        None,
        description="How images are stored in WebDataset; else `png`. Only `jpg`, and `webp` with a quality, lose anything.",
    )
    quality: int | None = Field(
        None, ge=1, le=100, description="Quality of `jpg` (95 if not given), or of a `webp` that may lose something."
    )
    keep_bad: bool = Field(False, description="Keep the files that could not be decoded, in the folder `quarantine`.")

    @model_validator(mode="after")
    def _fits(self) -> Render:
        if self.format == "parquet" and self.image is not None:
            raise ValueError("Parquet tables hold tensors as they are: leave `image` out")
        if self.quality is not None and self.image not in ("jpg", "webp"):
            raise ValueError(
                f"{self.image or 'this format'} loses nothing and has no quality: leave it out, or take `jpg` or `webp`"
            )
        return self


class Storage(Section):
    """Where results go."""

    runs: str = Field("runs", description="Folder or URL under which each run has its own folder, named after the recipe.")


class Tracking(Section):
    """Where metrics go besides the run's own JSON-lines log."""

    tensorboard: bool = Field(True, description="Write TensorBoard's event files, where the run's folder is a local one.")
    mlflow: str | None = Field(None, description="MLflow tracking URI; needs the `mlflow` extra.")
    samples: bool = Field(
        False, description="Write which samples each step trained to `samples`, where the run's folder is a local one."
    )


_OWN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_OTHER_CHANCE = ("crop", "task", "colours")
"""Streams of random numbers that are not a task's, see `pipeline.draws`."""


def _tasks(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    tasks: dict[str, Task] = {}
    errors: list[InitErrorDetails] = []

    def refuse(kind: str, words: str, where: tuple[Any, ...], given: Any = None) -> None:
        errors.append({"type": PydanticCustomError(kind, "{words}", {"words": words}), "loc": where, "input": given})

    for name, given in value.items():
        by_name = given.get("task") if isinstance(given, dict) else given.name if isinstance(given, Task) else None
        kind = name if by_name is None else by_name
        if not isinstance(kind, str) or kind not in registry():
            where = (str(name),) if by_name is None else (str(name), "task")
            refuse("unknown_task", unknown_name("task", str(kind), registry()), where)
        elif kind != name and (words := _own_name_refused(name, kind)):
            refuse("unknown_task", words, (str(name),))
        elif isinstance(given, Task):
            tasks[name] = given.model_copy(update={"task": None if kind == name else kind})
        else:
            try:
                parameters = {**given, "task": None if kind == name else kind} if isinstance(given, dict) else given
                tasks[name] = registry()[kind].model_validate({} if given is None else parameters)
            except ValidationError as refused:
                for e in refused.errors():
                    if e["type"] == "extra_forbidden":
                        refuse("unknown_key", unknown_name("key", str(e["loc"][-1]), registry()[kind].model_fields), (name,))
                    else:
                        refuse(e["type"], e["msg"], (name, *e["loc"]), e["input"])
    if errors:
        raise ValidationError.from_exception_data("tasks", errors)
    return tasks


def _own_name_refused(name: Any, kind: str) -> str | None:
    """Why a task of that kind cannot have that name, or None."""
    if not isinstance(name, str) or not _OWN_NAME.fullmatch(name):
        return f"a name of your own begins with a letter and has letters, digits, `_` and `-`, such as `{kind}_2`"
    if name in registry() or name in _OTHER_CHANCE:
        return f"this name is taken; give the `{kind}` one of your own, such as `{kind}_2`"
    return None


class Recipe(Section):
    """One run, from shards to results."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the run and its folder.")
    seed: int = Field(
        ge=0,
        lt=2**63,
        strict=True,
        description="All chance comes from it. Required: a run nobody can repeat is not worth its hours.",
    )
    corpus: CorpusSection
    image: Image = Image()
    tasks: Annotated[dict[str, SerializeAsAny[Task]], BeforeValidator(_tasks)] = Field(
        default_factory=dict,
        description="Pretext tasks by name, each with its parameters (`{}` for the defaults). Several of one kind have names of "
        "your own, and `task: <name of the task>` among their parameters.",
    )
    engine: Literal["auto", "cpu", "dali"] = Field("auto", description="`auto` takes `dali` where a GPU is visible, else `cpu`.")
    placement: Placement = Placement()
    failures: Failures = Failures()
    training: Training = Training()
    downstream: Downstream | None = None
    render: Render = Render()
    storage: Storage = Storage()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _engine_fits(self) -> Recipe:
        if self.image.reduced and self.engine == "dali":
            raise ValueError("image.reduced: DALI decodes at full size only; take `engine: cpu`, or leave `reduced` out")
        return self

    @model_validator(mode="after")
    def _tasks_fit(self) -> Recipe:
        for name, task in self.tasks.items():
            try:
                if task.frames > (self.corpus.frames or 1):
                    raise ValueError(
                        f"it looks at {task.frames} frames of a sample, and here they have {self.corpus.frames or 'no'} frames: "
                        f"set `corpus.frames: {task.frames}` for a corpus whose samples hold so many"
                    )
                task.check(self.image.size)
            except ValueError as error:
                raise ValueError(f"tasks.{name}: {error}") from None
        return self

    def canonical(self) -> str:
        """The resolved recipe as JSON with sorted keys: equal recipes, equal strings."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    def digest(self) -> str:
        """SHA-256 of `canonical()`, hexadecimal."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()
