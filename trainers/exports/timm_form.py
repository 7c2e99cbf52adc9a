"""A backbone as timm builds it: the architecture's name there, and its weights under timm's names."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from typing import Any, NamedTuple

from torch import Tensor, nn

from pipeline.errors import UserError
from trainers.exports.finished import FeatureExtractor
from trainers.networks.backbones import construct
from trainers.networks.timm_networks import timm_args, timm_size

_NAMES = {
    "vit_b_16": "vit_base_patch16_224",
    "vit_b_32": "vit_base_patch32_224",
    "vit_l_16": "vit_large_patch16_224",
    "vit_l_32": "vit_large_patch32_224",
    "resnet10": "resnet18",
}
"""Names in timm of networks that it calls otherwise than torchvision; the others have the same name."""


class TimmForm(NamedTuple):
    """A network of timm without its classifier.

    Args:
        architecture: its name in timm.
        args: arguments of `timm.create_model` beside the name.
        state: its weights, under timm's names.
    """

    architecture: str
    args: dict[str, Any]
    state: dict[str, Tensor]


def timm_form(extractor: FeatureExtractor, state: dict[str, Tensor]) -> TimmForm:
    """Find the network of timm that is the same as a backbone.

    Whether it computes the same has to be tried: weights are paired by their names or else by their shapes, in order.

    Raises:
        UserError: timm has no such network.
    """
    import timm

    spec, size = extractor.spec, extractor.backbone.image_size
    own = spec.provider == "timm"
    name = spec.name if own else _NAMES.get(spec.name, spec.name)
    instead = "take --to onnx or --to safetensors"
    if not timm.is_model(name):
        raise UserError(f"timm has no network like {spec.name}: {instead}")
    if extractor.layer is not None:
        raise UserError(f"pretraining trained {spec.name} up to {extractor.layer} only, and timm has whole networks: {instead}")
    ours = construct(spec, size)
    is_vit = hasattr(ours, "conv_proj") or timm_size(ours) is not None  # its stem is the size of its patches
    if own:
        args = {key: value for key, value in timm_args(spec, size).items() if key != "num_classes"}
    elif is_vit:
        args = {"img_size": ours.image_size, "patch_size": ours.patch_size}
    else:
        args = {"layers": [1, 1, 1, 1]} if spec.name == "resnet10" else {}
    if not is_vit and _stem(ours) != _stem(construct(spec.model_copy(update={"stem": "standard"}), size)):
        raise UserError(
            f"{spec.name} has first layers for small images here, which timm's {name} has not: {instead}, "
            "or pretrain with training.backbone.stem: standard"
        )
    theirs = timm.create_model(name, pretrained=False, num_classes=0, **args).state_dict()
    return TimmForm(name, args, _paired(state, theirs, f"timm's {name} differs from this {spec.name}: {instead}"))


def _stem(network: nn.Module) -> list[str]:
    """The layers that depend on the stem, in words."""
    return [repr(module) for module in network.modules() if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.Identity)]


def _paired(ours: dict[str, Tensor], theirs: dict[str, Tensor], refused: str) -> dict[str, Tensor]:
    """Our weights under their names: by name where all agree, else the first of each shape for the first, and so on."""
    if set(ours) == set(theirs):
        return {name: ours[name] for name in theirs}
    if Counter(map(_shape, ours.values())) != Counter(map(_shape, theirs.values())):
        raise UserError(refused)
    left: dict[tuple[int, ...], deque[Tensor]] = defaultdict(deque)
    for weight in ours.values():
        left[_shape(weight)].append(weight)
    return {name: left[_shape(weight)].popleft().reshape(weight.shape) for name, weight in theirs.items()}


def _shape(weight: Tensor) -> tuple[int, ...]:
    return tuple(side for side in weight.shape if side != 1)
