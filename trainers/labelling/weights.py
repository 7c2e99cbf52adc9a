"""The weights that features are computed with: a run's backbone, or a file of a network's weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.errors import UserError
from pipeline.recipe.schema import Recipe
from pipeline.storage import absolute, exists, join, read_all
from trainers.downstream.classifier import Classifier
from trainers.networks.weight_files import weights_of
from trainers.running.runs import BACKBONE, CLASSIFIER, HEAD, RECIPE, RunFolder


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights, and what its bytes are.

    Args:
        url: where it lies; all machines must be able to read it.
        sha256: of its bytes.
    """

    url: str
    sha256: str


def weights_url(recipe: Recipe, run: str | None = None, weights: str | None = None) -> str:
    """The URL of the weights: a file, the backbone of a run's folder, or that of the recipe's own run.

    Raises:
        UserError: both are given.
    """
    if run is not None and weights is not None:
        raise UserError("--run and --weights both name weights: leave one out")
    if weights is not None:
        return absolute(weights)
    return join(absolute(run), BACKBONE) if run is not None else RunFolder(recipe).path(BACKBONE)


def read_weights(url: str, recipe: Recipe) -> tuple[dict[str, Any], tuple[str, ...], WeightsFile]:
    """Read weights: those of a `pretrain`, or a `state_dict` of torch's, which may lie under a key such as `state_dict`.

    Returns:
        Tensors by name; the pretext tasks of the run, where they are known; and the file.

    Raises:
        UserError: there are none, they are of another network than the recipe's, or the file is damaged.
    """
    found, saved, file = _read(url, f"no weights at {url}: run `pseudolabel pretrain` first, or name a file by --weights")
    wanted = recipe.training.backbone.architecture()
    if saved.get("spec", wanted) != wanted:
        raise UserError(f"{url} holds {saved['spec']}, the recipe asks for {wanted}: change training.backbone")
    state = {name.removeprefix("module."): weight for name, weight in found.items()}
    return state, _tasks_beside(url) if "spec" in saved else (), file


def classifier_url(recipe: Recipe, run: str | None = None) -> str:
    """The URL of the classifier in a run's folder, by default the recipe's own: the fine-tuned one, else that of pretraining."""
    folder = absolute(run) if run is not None else RunFolder(recipe).url
    tuned, learnt = (join(folder, name) for name in (CLASSIFIER, HEAD))
    return learnt if exists(learnt) and not exists(tuned) else tuned


def read_classifier(url: str, recipe: Recipe) -> tuple[Classifier, list[str], WeightsFile]:
    """Read a classifier that `finetune`, or a `pretrain` that learnt classes, has written.

    Returns:
        It, the names of its classes, and the file.

    Raises:
        UserError: there is none, it is of another network than the recipe's, or the file is damaged.
    """
    missing = f"no classifier at {url}: run `pseudolabel finetune` first, or name a run's folder by --run"
    state, saved, file = _read(url, missing)
    classes = saved.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{url} names no classes: it is no classifier of `pseudolabel finetune`")
    model = Classifier(recipe, len(classes), None)
    try:
        model.load_state_dict(state)
    except RuntimeError:
        raise UserError(f"{url} is of another network than {recipe.training.backbone.name}: change training.backbone") from None
    return model, classes, file


def _read(url: str, missing: str) -> tuple[dict[str, Tensor], dict[str, Any], WeightsFile]:
    """The weights in a file and all that it holds, as of `weights_of`, and the file; `missing` is the error if there is none."""
    try:
        content = read_all(url)
    except FileNotFoundError:
        raise UserError(missing) from None
    except OSError as error:
        raise UserError(f"{url} cannot be read: {error}") from None
    return *weights_of(content, url, url), WeightsFile(url, hashlib.sha256(content).hexdigest())


def _tasks_beside(url: str) -> tuple[str, ...]:
    """The pretext tasks by the recipe in a run's folder; none where it cannot be read, for only messages name them."""
    try:
        return tuple(json.loads(read_all(join(url.rpartition("/")[0], RECIPE)))["tasks"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()
