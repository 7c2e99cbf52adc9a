"""The folder of a run: results as JSON, weights and checkpoints, under `storage.runs`."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

from pipeline.engines import settled
from pipeline.errors import UserError
from pipeline.recipe.schema import Recipe
from pipeline.storage import absolute, exists, join, make_folder, read_all, remove, scrubbed_document, walk, write_atomic

# What changes where and how fast a run goes, but not what it computes: a run may be resumed with other values of these.
_CIRCUMSTANCES: dict[str, Any] = {
    "placement": True,
    "failures": True,
    "render": True,
    "storage": True,
    "tracking": True,
    "corpus": {"index"},
    "training": {"workers", "resize_seconds", "cpus", "gpus", "threads", "keep", "log_steps", "checkpoint_epochs"},
}


class RunFolder:
    """Names and reads and writes what a run leaves.

    Args:
        recipe: its `storage.runs` and `name` say where.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.url = join(absolute(recipe.storage.runs), recipe.name)

    def make(self) -> None:
        """Make the folder where storage has folders."""
        make_folder(self.url)

    def path(self, name: str) -> str:
        """URL of a file of the run."""
        return join(self.url, name)

    def identity(self, stage: str) -> str:
        """A short name for what a stage computes: equal for recipes that differ only in circumstances."""
        left_out = dict(_CIRCUMSTANCES)
        if stage == "pretrain":
            left_out |= {"downstream": True}
        content = settled(self._recipe).model_dump(mode="json", exclude=left_out)
        return hashlib.sha256(json.dumps([stage, content], sort_keys=True).encode()).hexdigest()[:12]

    def checkpoints(self, stage: str) -> str:
        """Folder of the checkpoints of a stage, as far as another recipe does not compute something else."""
        return self.path(f"{stage}-{self.identity(stage)}")

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file, whole or not at all, without what its URLs hold of secrets."""
        with write_atomic(self.path(name)) as file:
            file.write(json.dumps(scrubbed_document(content), indent=1).encode())

    def read_json(self, name: str) -> Any | None:
        """A JSON file of the run, or None if there is none."""
        return json.loads(read_all(self.path(name))) if exists(self.path(name)) else None

    def clear(self, name: str) -> None:
        """Delete a folder of the run, if it is there."""
        place = self.path(name)
        if exists(place):
            for file, _ in walk(place):
                remove(join(place, file))

    def write_weights(self, name: str, content: dict[str, Any]) -> None:
        """Write tensors and plain data."""
        import torch

        buffer = io.BytesIO()
        torch.save(content, buffer)
        with write_atomic(self.path(name)) as file:
            file.write(buffer.getvalue())

    def read_weights(self, name: str) -> dict[str, Any]:
        """Weights that the run has written.

        Raises:
            UserError: there are none yet.
        """
        if not exists(self.path(name)):
            raise UserError(f"no pretrained backbone at {self.path(name)}: run `pseudolabel pretrain` with this recipe first")
        import torch

        content: dict[str, Any] = torch.load(io.BytesIO(read_all(self.path(name))), map_location="cpu", weights_only=True)
        return content
