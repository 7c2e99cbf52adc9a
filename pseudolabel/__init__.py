"""The public names of `pipeline` and `trainers` in one place, for a user's own Python code.

    import pseudolabel

    recipe = pseudolabel.load_recipe("recipe.yaml")
    for batch in pseudolabel.pairs(recipe, epoch=0): ...

`pipeline`, `trainers` and `cluster` are common names. After this import they mean the packages next to this one, even if the
working directory or the script's folder has others of these names.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.pictures.preview import sheet as sheet
    from pipeline.errors import RunError as RunError
    from pipeline.errors import UserError as UserError
    from pipeline.materialize.run import render as render
    from pipeline.materialize.verify import verify as verify
    from pipeline.recipe import Recipe as Recipe
    from pipeline.recipe import load_recipe as load_recipe
    from pipeline.recipe import parse_recipe as parse_recipe
    from pipeline.shards.inspect import inspect as inspect
    from pipeline.shards.opening import names_of as names_of
    from pipeline.shards.opening import open_corpus as open_corpus
    from pipeline.shards.pack import pack as pack
    from pipeline.streaming.pairs import dataset as dataset
    from pipeline.streaming.pairs import pairs as pairs
    from pipeline.tasks import Task as Task
    from pipeline.tasks import registry as registry
    from trainers.downstream.evaluate import evaluate as evaluate
    from trainers.downstream.finetune import finetune as finetune
    from trainers.downstream.transfer import transfer as transfer
    from trainers.exports.finished import load_backbone as load_backbone
    from trainers.pretraining import pretrain as pretrain

_HOMES = {
    "Recipe": "pipeline.recipe",
    "RunError": "pipeline.errors",
    "Task": "pipeline.tasks",
    "UserError": "pipeline.errors",
    "dataset": "pipeline.streaming.pairs",
    "evaluate": "trainers.downstream.evaluate",
    "finetune": "trainers.downstream.finetune",
    "inspect": "pipeline.shards.inspect",
    "load_backbone": "trainers.exports.finished",
    "load_recipe": "pipeline.recipe",
    "names_of": "pipeline.shards.opening",
    "open_corpus": "pipeline.shards.opening",
    "pack": "pipeline.shards.pack",
    "pairs": "pipeline.streaming.pairs",
    "parse_recipe": "pipeline.recipe",
    "pretrain": "trainers.pretraining",
    "registry": "pipeline.tasks",
    "render": "pipeline.materialize.run",
    "sheet": "cluster.pictures.preview",
    "transfer": "trainers.downstream.transfer",
    "verify": "pipeline.materialize.verify",
}
__all__ = [
    "Recipe", "RunError", "Task", "UserError", "dataset", "evaluate", "finetune", "inspect", "load_backbone", "load_recipe",
    "names_of", "open_corpus", "pack", "pairs", "parse_recipe", "pretrain", "registry", "render", "sheet", "transfer",
    "verify",
]  # fmt: skip


if not TYPE_CHECKING:  # a type checker would take any name for one that is there

    def __getattr__(name: str) -> Any:  # loaded at first use: torch and Ray take seconds
        if name not in _HOMES:
            raise AttributeError(f"module 'pseudolabel' has no attribute '{name}'")
        return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__


def _import_ours() -> None:
    home = Path(__file__).parents[1]
    sys.path.insert(0, str(home))
    try:
        for name in ("pipeline", "trainers", "cluster"):
            found = importlib.import_module(name)
            where = Path(found.__file__ or found.__path__[0])
            if not (home / name / "__init__.py").samefile(where):
                raise ImportError(
                    f"pseudolabel's package `{name}` cannot be imported, since another `{name}` is, from {where}: "
                    f"write `import pseudolabel` before whatever imports that one, or give it another name"
                )
    finally:
        sys.path.remove(str(home))


_import_ours()
