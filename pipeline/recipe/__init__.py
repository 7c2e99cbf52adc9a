"""The recipe and how it is read."""

from pipeline.recipe.load import load_recipe, parse_recipe
from pipeline.recipe.schema import Recipe

__all__ = ["Recipe", "load_recipe", "parse_recipe"]
