"""The recipe's sections `corpus` and `image`: which images are read, and what is cut from each."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pipeline.recipe.section import Section, Shards, without_defaults


class CorpusPart(Section):
    """One corpus of a mixture."""

    shards: Shards = Field(description="Its shards, as in `corpus.shards`.")
    weight: float = Field(1.0, gt=0, description="Its share of the samples of an epoch, relative to the other weights.")


class AnnotationSection(Section):
    """Labels of the images in tables beside the corpus; a URL alone stands for `{table: URL}`."""

    table: str = Field(description="Folder of the tables, path or URL, which `pseudolabel cluster` has written.")
    column: str = Field("label", description="The column that is the label, whole numbers from 0; below 0, an image has none.")
    weight: str | None = Field(
        None,
        exclude_if=lambda column: column is None,
        description="The column by which an image's loss is multiplied, numbers from 0, such as `confidence`; if not set, all "
        "images count alike.",
    )
    least: dict[str, float] = Field(
        default_factory=dict, description="Least values of columns, such as `{margin: 0.05}`: an image below one has no label."
    )
    most: dict[str, float] = Field(
        default_factory=dict,
        description="Greatest values of columns, such as `{distance: 0.4}`: an image above one has no label.",
    )

    @model_validator(mode="before")
    @classmethod
    def _url_alone(cls, given: Any) -> Any:
        return {"table": given} if isinstance(given, str) else given


class KeepSection(Section):
    """A part of the corpus, named by a table beside it: the images of its rows whose columns are within all bounds."""

    table: str = Field(description="Folder of the tables, path or URL, which `pseudolabel cluster` or `label` has written.")
    least: dict[str, float] = Field(
        default_factory=dict, description="Least values of columns, such as `{confidence: 0.5}`: an image below one is left out."
    )
    most: dict[str, float] = Field(
        default_factory=dict, description="Greatest values of columns, such as `{distance: 0.4}`: an image above one is left out."
    )


class LabelledSection(Section):
    """The images whose class (`cls`) is known to tasks that learn it, and their part of each batch; a number alone is `share`."""

    share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the labels that is known, the same for each class, at least one of each; that of the others is "
        "hidden. With one seed they are the images that `downstream.labels` takes, and 1 % are among 10 %.",
    )
    batch: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Their part of each batch, on average; few of them then come often in an epoch, with new draws each time. 1 "
        "trains on them alone. If not set, they come as often as the others.",
    )

    @model_validator(mode="before")
    @classmethod
    def _share_alone(cls, given: Any) -> Any:
        return {"share": given} if isinstance(given, int | float) else given


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
        None, description="Extension of the image to take where a sample has several; if not set, the first."
    )
    index: str | None = Field(
        None,
        description="Folder, path or URL, for the index of shards whose own folder has none and cannot be written, such as over "
        "http, signed or not; every machine must reach it. If not set, each process that reads such shards scans them.",
    )
    frames: int | None = Field(
        None,
        ge=2,
        le=64,
        description="How many images of each sample are the frames of a clip, in the natural order of their names "
        "(`clip7.0.jpg`, `clip7.1.jpg`, ...). Tasks of one image get the first.",
    )

    keys: Literal["name", "shard"] = Field(
        "name",
        description="What a sample's random numbers depend on: its `name` (its key), or `shard` and name, for shards that are "
        "numbered alike (`000000.jpg` in each). Another choice draws other pairs.",
    )

    annotations: dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")], AnnotationSection] = Field(
        default_factory=dict,
        description="Labels of the images in tables beside the corpus, by a name of your own, for the task `assigned`: URL of "
        "their folder, or a mapping of `table`, the URL, with `column` (if not set, `label`), `weight`, a column by which losses "
        "are multiplied, and bounds of columns, `least` and `most`, such as `{margin: 0.05}`: an image beyond one has no label.",
    )

    keep: KeepSection | None = Field(
        None,
        description="Train on a part of the images: those that a table beside the corpus has within bounds. A mapping of "
        "`table`, its URL, with `least` and `most`, bounds of columns.",
    )

    labelled: LabelledSection | None = Field(
        None,
        description="Which images' classes are known, for tasks that learn them, such as `supervised`: a share of them, or a "
        "mapping of `share`, with `batch`, their part of each batch. If not set, all that the shards have.",
    )

    @model_validator(mode="after")
    def _one_or_several(self) -> CorpusSection:
        if bool(self.shards) == bool(self.mix):
            raise ValueError("needs `shards`, or `mix` with several corpora")
        if self.mix and self.labelled:
            raise ValueError("labelled: corpora of a mixture have no common labels; list labelled and other shards in `shards`")
        return self

    @model_serializer(mode="wrap")
    def _without_the_other(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave unused keys out, so that a recipe without them has the same canonical form as before they existed."""
        document = without_defaults(self, serialize(self), "frames", "index", "keys", "annotations", "keep", "labelled")
        document.pop("shards" if self.mix else "mix", None)  # absent from a dump of some fields only
        return document

    def lists(self) -> list[Shards]:
        """The shards of each corpus."""
        return [part.shards for part in self.mix.values()] if self.mix else [self.shards]


class Image(Section):
    """The crop of each photo, which all tasks share."""

    size: int = Field(224, ge=8, le=2048, description="Side of the square crop, pixels.")
    crop: Literal["random", "center"] = Field(
        "random",
        description="`random`: random resized crop; `center`: the largest centred square. Evaluation is always `center`.",
    )
    scale: tuple[float, float] = Field((0.2, 1.0), description="Share of the photo's area that a random crop covers.")
    ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="Width over height of a random crop before it is made square.")
    flip: bool = Field(True, description="Mirror left and right with probability one half.")
    max_pixels: int = Field(100_000_000, ge=1, description="Photos of more pixels are not decoded but quarantined.")
    reduced: bool = Field(
        False,
        description="Decode a JPEG at 1/2, 1/4 or 1/8 of its size where that is still larger than the crop: faster for photos "
        "several times as large as the crop; pixels differ by a level or two. Engine `cpu` only.",
    )
    mean: tuple[float, float, float] = Field(
        (0.485, 0.456, 0.406), description="Channel means for the network's input, between 0 and 1."
    )
    std: tuple[float, float, float] = Field((0.229, 0.224, 0.225), description="Channel standard deviations, on the same scale.")

    @model_validator(mode="after")
    def _ranges(self) -> Image:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale {list(self.scale)}: needs 0 < least <= most <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio {list(self.ratio)}: needs 0 < least <= most")
        if min(self.std) <= 0:
            raise ValueError(f"std {list(self.std)}: every entry must be above 0")
        return self
