"""Networks of timm, built for images of any size."""

from __future__ import annotations

import difflib
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from pipeline.errors import UserError, installing
from pipeline.recipe.suggest import unknown_name
from pipeline.recipe.training import BackboneSection
from trainers.networks.graph import is_timms
from trainers.networks.stem import is_small, keep_resolution


def construct_timm(spec: BackboneSection, image_size: int) -> nn.Module:
    """Build a network of timm with random weights, classifier included.

    A Vision Transformer is built for the images' size; its small stem is smaller patches, `image_size` / 8 pixels or less.

    Raises:
        UserError: timm is not installed or has no such network, or the network refuses the arguments.
    """
    args = timm_args(spec, image_size)
    model = _create(spec, args)
    if is_small(spec.stem, image_size) and timm_size(model) is None:
        keep_resolution(model)
    return model


def timm_args(spec: BackboneSection, image_size: int) -> dict[str, Any]:
    """The arguments of `timm.create_model`, beside the name, for images of this size; errors as of `construct_timm`."""
    with torch.device("meta"):  # without weights, only to read its sizes
        draft = _create(spec, dict(spec.args))
    if timm_size(draft) is None or "img_size" in spec.args:
        return dict(spec.args)
    patch = _patches(draft).patch_size[0]
    if is_small(spec.stem, image_size) and "patch_size" not in spec.args:
        patch = min(patch, max(1, image_size // 8))
    if image_size < patch:
        raise UserError(f"training.backbone: {spec.name} needs images of {patch} px or more; set stem: small")
    return {**spec.args, "patch_size": patch, "img_size": image_size // patch * patch}


def timm_size(model: nn.Module) -> int | None:
    """The one side of images, in pixels, that a Vision Transformer of timm takes; None for other networks."""
    if is_timms(model) and hasattr(model, "num_prefix_tokens") and hasattr(model, "patch_embed"):
        return int(_patches(model).img_size[0])
    return None


def _patches(model: Any) -> Any:
    """The layer of a Vision Transformer that makes an image to patches."""
    return model.patch_embed


def _create(spec: BackboneSection, args: dict[str, Any]) -> nn.Module:
    if find_spec("timm") is None:
        raise UserError(f"training.backbone.provider: timm is not installed: {installing('export')}")
    import timm

    if not timm.is_model(spec.name):
        names = timm.list_models()
        near = difflib.get_close_matches(spec.name, names, n=8, cutoff=0.3) or ["resnet18", "vit_tiny_patch16_224"]
        raise UserError(
            f"training.backbone.name: {unknown_name('backbone', spec.name, near)}, and the rest of timm's {len(names)}"
        )
    for taken in {"pretrained", "checkpoint_path", "pretrained_cfg"} & set(args):
        raise UserError(f"training.backbone.args.{taken}: weights are given by training.backbone.weights, a file or URL")
    try:
        model: nn.Module = timm.create_model(spec.name, pretrained=False, **{"num_classes": 1000, **args})  # some have no head
        return model
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"training.backbone.args: {spec.name} refuses them: {error}") from None
