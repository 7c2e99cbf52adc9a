"""What pretraining left in a run's folder, and where the recipe at hand is another than the one that it followed."""

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
        weights: under torchvision's names.
        identity: the name of what was computed, see `RunFolder.identity`.
        tasks: the pretext tasks, as far as the run's folder says.
        differs: keys in which the recipe at hand differs, with the value of pretraining and its own.
    """

    weights: dict[str, Any]
    identity: str
    tasks: tuple[str, ...]
    differs: dict[str, list[Any]]


def read_pretrained(recipe: Recipe) -> Pretrained:
    """The backbone in the recipe's run folder; that it was pretrained with another recipe is said, and no error.

    Raises:
        UserError: there is none, or it is another network than the recipe's.
    """
    folder = RunFolder(recipe)
    saved = folder.read_weights(BACKBONE)
    if saved["spec"] != recipe.training.backbone.model_dump():
        raise UserError(
            f"{folder.path(BACKBONE)} holds {saved['spec']}, the recipe asks for {recipe.training.backbone.model_dump()}"
        )
    document = folder.read_json(RECIPE) or {}
    found = differences(document, scrubbed_document(recipe.model_dump(mode="json"))) if document else []
    if saved["identity"] != folder.identity("pretrain"):
        shown = [str(difference) for difference in found if not difference.key.startswith("downstream")]
        what = ", ".join(shown[:6]) + (", …" if len(shown) > 6 else "")
        log.warning("%s was pretrained with another recipe%s", folder.path(BACKBONE), f": {what}" if shown else "")
    return Pretrained(
        saved["backbone"], saved["identity"], tuple(document.get("tasks", ())), {key: [was, now] for key, was, now in found}
    )
