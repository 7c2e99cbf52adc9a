"""The recipe's sections `render`, `storage` and `tracking`: what is written, and where."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pipeline.recipe.section import Section, without_defaults


class Render(Section):
    """How `pseudolabel render` stores pairs."""

    epochs: int = Field(1, ge=1, le=1000, description="Epochs to render: how often each image is drawn.")
    format: Literal["webdataset", "parquet"] = Field("webdataset", description="Tars of files, or Parquet tables of tensors.")
    image: Literal["png", "webp", "jpg", "npy"] | None = Field(
        None,
        description="Image format in WebDataset; if not set, `png`. Only `jpg`, and `webp` with a quality, are lossy.",
    )
    quality: int | None = Field(None, ge=1, le=100, description="Quality of `jpg` (95 if not set); with it, `webp` is lossy.")
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
    """Where metrics are written besides the run's own JSON-lines log."""

    tensorboard: bool = Field(True, description="Write TensorBoard's event files, where the run's folder is a local one.")
    mlflow: str | None = Field(
        None, description="MLflow tracking URI; the pretrained backbone is registered there, too. Needs the `mlflow` extra."
    )
    wandb: str | None = Field(
        None,
        description="Project of Weights & Biases, as `project` or `entity/project`; `WANDB_MODE=offline` in the environment "
        "writes to the run's folder. Needs the `wandb` extra.",
    )
    samples: bool = Field(
        False, description="Write which samples each step trained to `samples`, where the run's folder is a local one."
    )

    @model_serializer(mode="wrap")
    def _document(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults(self, handler(self), "wandb")
