"""Reads the pretrained backbone of a run's folder, and lists where its recipe differs from the present one."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.recipe.schema import Recipe
from pipeline.storage import scrubbed_document
from trainers.running.runs import BACKBONE, RECIPE, RunFolder, differences

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretrained:
    """A pretrained backbone.

    Args:
        weights: tensors by torchvision's names.
        identity: of the pretraining, see `RunFolder.identity`.
        tasks: the pretext tasks, if the run's folder names them.
        differs: keys in which the present recipe differs, with both values.
    """

    weights: dict[str, Any]
    identity: str
    tasks: tuple[str, ...]
    differs: dict[str, list[Any]]


def read_pretrained(recipe: Recipe) -> Pretrained:
    """Read the backbone in the recipe's run folder; warns if it was pretrained with another recipe.

    Raises:
        UserError: there is no backbone, or it is of another network than the recipe's.
    """
    folder = RunFolder(recipe)
    saved = folder.read_weights(BACKBONE)
    held, asked = saved["spec"], recipe.training.backbone.model_copy(update={"weights": None}).model_dump()
    if held != asked:
        raise UserError(f"{folder.path(BACKBONE)} holds {held}, the recipe asks for {asked}")
    document = folder.read_json(RECIPE) or {}
    found = differences(document, scrubbed_document(recipe.model_dump(mode="json"))) if document else []
    if saved["identity"] != folder.identity("pretrain"):
        shown = [str(difference) for difference in found if not difference.key.startswith("downstream")]
        what = ", ".join(shown[:6]) + (", …" if len(shown) > 6 else "")
        log.warning("%s was pretrained with another recipe%s", folder.path(BACKBONE), f": {what}" if shown else "")
    return Pretrained(
        saved["backbone"], saved["identity"], tuple(document.get("tasks", ())), {key: [was, now] for key, was, now in found}
    )
