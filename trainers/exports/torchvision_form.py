"""A backbone as torchvision builds it, and the lines of code by which a reader without this package builds it, too."""

from __future__ import annotations

from typing import NamedTuple

import torchvision
from torch import Tensor, nn
from torchvision.models import MaxVit, MNASNet, VisionTransformer
from torchvision.models.feature_extraction import create_feature_extractor

from pipeline.errors import UserError
from trainers.exports.finished import FeatureExtractor
from trainers.networks.backbones import construct

_MORE_THAN_WEIGHTS = MNASNet, MaxVit
"""Networks whose state holds more than weights: MNASNet's version, the places in MaxVit's windows."""


class TorchvisionForm(NamedTuple):
    """A network of torchvision without its classifier.

    Args:
        network: the network, with random weights; after `restored` it computes the feature vectors.
        lines: Python that builds `network`, in `torch` and `torchvision` alone.
        ending: Python that loads the weights `state` into `network` and computes `features` of `images`.
    """

    network: nn.Module
    lines: list[str]
    ending: list[str]


def torchvision_form(extractor: FeatureExtractor) -> TorchvisionForm:
    """Describe a backbone as torchvision's network and what was changed in it.

    Raises:
        UserError: it is no network of torchvision, or it was trained up to a layer whose output is no map of (n, c, h, w).
    """
    spec, size = extractor.spec, extractor.backbone.image_size
    if spec.provider == "timm":
        raise UserError(f"{spec.name} is timm's network: take --to timm, which writes model.safetensors, or --to onnx")
    ours = construct(spec, size)
    args = dict(spec.args)
    if spec.name == "resnet10":
        lines = ["network = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])"]
        plain: nn.Module = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    elif isinstance(ours, VisionTransformer):
        sizes = {
            "image_size": ours.image_size,
            "patch_size": ours.patch_size,
            "num_layers": len(ours.encoder.layers),
            "num_heads": ours.encoder.layers[0].num_heads,
            "hidden_dim": ours.hidden_dim,
            "mlp_dim": ours.mlp_dim,
        }
        lines, plain = [f"network = torchvision.models.VisionTransformer({_words(sizes)})"], ours
    else:
        if spec.name in ("googlenet", "inception_v3"):
            args = {"aux_logits": False, "init_weights": True, **args}
        if spec.name not in torchvision.models.list_models(module=torchvision.models):
            raise UserError(f"{spec.name} is no network of torchvision: take --to onnx")
        lines = [f"network = torchvision.models.get_model({', '.join(filter(None, [repr(spec.name), _words(args)]))})"]
        plain = torchvision.models.get_model(spec.name, weights=None, **args)
    before = dict(plain.named_modules())
    for path, module in ours.named_modules():
        if not list(module.children()) and repr(module) != repr(before.get(path)):
            lines.append(f'network.set_submodule("{path}", torch.nn.{module!r})  # for small images')
    if extractor.layer is None:
        path = [path for path, module in ours.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
        ours.set_submodule(path, nn.Identity())
        lines.append(f'network.set_submodule("{path}", torch.nn.Identity())  # the classifier; its input is the feature vector')
        loading = ["network.load_state_dict(state)"]
        if isinstance(ours, _MORE_THAN_WEIGHTS):
            loading = [
                "whole = network.state_dict()  # more than weights",
                "whole.update(state)",
                "network.load_state_dict(whole)",
            ]
        return TorchvisionForm(ours, lines, [*loading, "features = network.eval()(images)"])
    if extractor.backbone.layout(extractor.layer) != "nchw":
        raise UserError(
            f"pretraining trained {spec.name} up to {extractor.layer} only: take --to onnx, "
            "or add a task that reads the whole network, such as rotation"
        )
    layer = f'"{extractor.layer}"'
    ending = [
        f"network.load_state_dict(state, strict=False)  # pretraining trained the layers up to {extractor.layer}",
        f"layer = torchvision.models.feature_extraction.create_feature_extractor(network.eval(), [{layer}])",
        f"features = layer(images)[{layer}].mean((2, 3))",
    ]
    return TorchvisionForm(ours, lines, ending)


class RestoredNetwork(nn.Module):
    """A network of torchvision with exported weights, as the lines of its form restore it."""

    def __init__(self, form: TorchvisionForm, state: dict[str, Tensor], layer: str | None) -> None:
        super().__init__()
        if isinstance(form.network, _MORE_THAN_WEIGHTS):
            whole = form.network.state_dict()
            whole.update(state)
            state = whole
        form.network.load_state_dict(state, strict=layer is None)
        self._layer = layer
        self.network = form.network.eval()
        if layer is not None:
            self.network = create_feature_extractor(self.network, [layer], suppress_diff_warning=True).eval()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the vectors, float (n, width), of normalised images, float (n, 3, h, w)."""
        found = self.network(x)
        return found if self._layer is None else found[self._layer].mean((2, 3))


def reading_lines(form: TorchvisionForm, reading: str) -> str:
    """A whole program around a form, which reads the weights by the expression `reading`."""
    return "\n".join(["import torch", "import torchvision", *form.lines, f"state = {reading}", *form.ending])


def _words(args: dict[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in args.items())
