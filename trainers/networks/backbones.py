"""Backbones: any torchvision classification network, or another package's, as a source of features for images of any size."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib.metadata import EntryPoint
from typing import Any, Literal, NamedTuple

import torch
import torchvision
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torchvision.models import ResNet, VisionTransformer
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.resnet import BasicBlock

from pipeline.errors import UserError
from pipeline.recipe.suggest import unknown_name
from pipeline.recipe.training import BackboneSection
from pipeline.tasks.plugins import load, points_of
from trainers.networks.graph import Cut, Layout, NetworkPlan, make_plan, refusal, until
from trainers.networks.stem import is_small, keep_resolution, with_patches
from trainers.networks.timm_networks import construct_timm, timm_size

Output = Literal["vector", "map", "pyramid"]

LARGER_SIZES = (32, 48, 64, 96, 128, 160, 192, 224, 256, 299)
"""Sides, in pixels, to which images are enlarged for a network that cannot take their size; the first that works is used."""


class Features(NamedTuple):
    """A backbone's outputs for a batch; None for an output that it was built without.

    Args:
        vector: (n, vector_width), the input of the network's own classifier.
        map: (n, map_width, h, w), the last feature map with more than one position.
        pyramid: up to three maps (n, width, h, w) of different sizes, from fine to coarse; the last is `map`.
    """

    vector: Tensor | None
    map: Tensor | None
    pyramid: tuple[Tensor, ...] | None


_CONSTANT = "_tensor_constant"
"""How torch.fx names tensors that a network computes with and that are neither weights nor statistics."""


class Backbone(nn.Module):
    """A network without its classifier and without all other layers that its outputs do not need.

    Attributes:
        network: the torchvision network as a graph; its `state_dict` has torchvision's own names.
        image_size: side of the images it was built for, pixels.
        input_size: side, in pixels, to which images are resized if the network cannot take their size.
        vector_width: length of the feature vector.
        map_width: channels of the map.
        map_size: (h, w) of the map for images of `image_size`.
        pyramid_widths: channels of each map of the pyramid.
    """

    network: fx.GraphModule

    def __init__(self, network: fx.GraphModule, plan: NetworkPlan, outputs: tuple[Output, ...], image_size: int) -> None:
        super().__init__()
        self.network = network
        self.image_size = image_size
        self.input_size = plan.size
        self.vector_width = plan.vector.width
        self.map_width = plan.map.width
        self.map_size = plan.map.extent
        self.pyramid_widths = [cut.width for cut in plan.pyramid]
        self._plan = plan
        self._outputs = outputs
        self._takes: dict[tuple[int, int], bool] = {}

    def forward(self, x: Tensor) -> Features:
        """Compute the features of normalised images, float (n, 3, h, w), of any size."""
        out = self.network(self.resized(x))
        vector, grid = self._plan.vector, self._plan.map
        return Features(
            vector=vector.pooled(out[vector.path]) if "vector" in self._outputs else None,
            map=grid.grid(out[grid.path]) if "map" in self._outputs else None,
            pyramid=tuple(cut.grid(out[cut.path]) for cut in self._plan.pyramid) if "pyramid" in self._outputs else None,
        )

    def resized(self, x: Tensor) -> Tensor:
        """Resize `x` bilinearly to `input_size` if the network cannot take its size; otherwise `x` is returned unchanged."""
        size = (x.shape[-2], x.shape[-1])
        if size not in self._takes:
            self._takes[size] = refusal(self.network, self._eval_graph, size) is None
        if self._takes[size]:
            return x
        return F.interpolate(x, (self.input_size, self.input_size), mode="bilinear", align_corners=False)

    def embedding(self, *layers: str | None) -> Embedding:
        """Make a network from images to one vector each that shares this one's weights.

        Call it after the backbone is on its device.

        Args:
            layers: name of the module whose output is averaged over positions, such as `layer3`; None, or no name, for the
                feature vector (for a backbone without that output, its averaged map). Vectors of several are side by side.

        Raises:
            UserError: there is no such layer, or the backbone was built without it.
        """
        cuts = [self._cut(layer) for layer in layers or (None,)]
        return Embedding(self, until(self.network, self._eval_graph, *(cut.node for cut in cuts)), cuts)

    def lacking(self, layer: str | None, missing: Iterable[str]) -> list[str]:
        """The weights among `missing` on which a layer's output depends; `layer` and errors as in `embedding`."""
        end = self._cut(layer).node
        needed = {node for node in self._eval_graph.nodes if node.name == end}
        for node in reversed(self._eval_graph.nodes):
            if node in needed:
                needed.update(node.all_input_nodes)
        used = tuple(f"{node.target}." for node in needed if node.op in ("call_module", "get_attr"))
        return sorted(name for name in missing if f"{name}.".startswith(used))

    @property
    def map_layer(self) -> str | None:
        """Name of the last layer up to the map: the map depends on no weights behind it. Of several names the shortest."""
        place = {node.name: i for i, node in enumerate(self._eval_graph.nodes)}
        end = place[self._plan.map.node]
        layers = [(path, place[cut.node]) for path, cut in self._plan.layers.items() if place.get(cut.node, end + 1) <= end]
        return max(layers, key=lambda layer: (layer[1], -layer[0].count(".")), default=(None, 0))[0]

    def layout(self, layer: str) -> Layout:
        """What the axes of a layer's output are; errors as in `embedding`."""
        return self._cut(layer).layout

    def _cut(self, layer: str | None) -> Cut:
        if layer is None:
            return self._plan.vector if "vector" in self._outputs else self._plan.map
        kept = {node.name for node in self._eval_graph.nodes}
        layers = {path: cut for path, cut in self._plan.layers.items() if cut.node in kept}
        if layer not in layers:
            raise UserError(unknown_name("layer", layer, _shortest(layers)))
        return layers[layer]

    def weight_names(self) -> frozenset[str]:
        """Names of the network's weights and statistics, as torchvision has them."""
        return frozenset(name for name in self.network.state_dict() if not name.startswith(_CONSTANT))

    def load(self, state: dict[str, Tensor]) -> list[str]:
        """Load the weights of a backbone of the same kind, which may have been built with other outputs.

        Args:
            state: the other's `state_dict()`, or its `network.state_dict()`, which has torchvision's names.

        Returns:
            Names of weights that keep their initial values because `state` lacks them: layers behind the map, if the other
            backbone was built for its map only.

        Raises:
            UserError: the weights are those of another network.
        """
        plain = {name.removeprefix("network."): weight for name, weight in state.items()}
        state = {name: weight for name, weight in plain.items() if not name.startswith(_CONSTANT)}
        missing = self.weight_names() - set(state)
        shared = until(self.network, self._eval_graph, self._plan.map.node).state_dict()
        foreign = sorted((missing & set(shared)) | (set(state) - self._plan.weights))
        if foreign:
            raise UserError(
                f"these weights are not of the recipe's backbone: they differ from it in {', '.join(foreign[:3])} and others"
            )
        try:
            self.network.load_state_dict(state, strict=False)
        except RuntimeError as error:  # the shapes differ
            raise UserError(f"these weights are not of the recipe's backbone: {' '.join(str(error).split())[:300]}") from None
        return sorted(missing)

    @property
    def _eval_graph(self) -> fx.Graph:
        graph = self.network.eval_graph
        assert isinstance(graph, fx.Graph)
        return graph


class Embedding(nn.Module):
    """Computes one vector for each image from layers of a backbone, in evaluation mode; made by `Backbone.embedding`.

    Attributes:
        width: length of the vectors.
    """

    def __init__(self, backbone: Backbone, part: fx.GraphModule, cuts: list[Cut]) -> None:
        super().__init__()
        self.part = part
        self.width = sum(cut.width for cut in cuts)
        self._resized = backbone.resized
        self._cuts = cuts
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the vectors, float (n, width), of normalised images, float (n, 3, h, w)."""
        out = self.part(self._resized(x))
        if len(self._cuts) == 1:
            return self._cuts[0].pooled(out)
        return torch.cat([cut.pooled(one) for cut, one in zip(self._cuts, out, strict=True)], dim=1)


def build_backbone(
    spec: BackboneSection, image_size: int, seed: int, outputs: tuple[Output, ...] = ("vector", "map")
) -> Backbone:
    """Build a randomly initialised backbone.

    Args:
        spec: the recipe's `training.backbone`.
        image_size: side of the images, pixels.
        seed: seed of the weights; the state of torch's own generator does not change.
        outputs: the outputs that will be used. Weights that they do not need are left out, as distributed training requires.

    Raises:
        UserError: the network is unknown, its builder does not accept the arguments, or it can take no image size.
    """
    with seeded(seed):
        model = construct(spec, image_size)
    plan = _plan(spec.model_dump_json(), image_size)
    cuts = {"vector": (plan.vector,), "map": (plan.map,), "pyramid": plan.pyramid}
    paths = {cut.path: cut.path for output in outputs for cut in cuts[output]}
    network = create_feature_extractor(model, paths, suppress_diff_warning=True)
    return Backbone(network, plan, outputs, image_size)


def check_backbone(spec: BackboneSection, image_size: int) -> None:
    """Raise the `UserError` that `build_backbone` would raise, if any, without making weights."""
    _plan(spec.model_dump_json(), image_size)


@lru_cache(maxsize=32)
def _plan(spec: str, image_size: int) -> NetworkPlan:
    """Where networks of this kind are cut, whatever their weights; cached, since tracing is slow. `spec` is in JSON."""
    try:
        with torch.device("meta"):
            model = construct(BackboneSection.model_validate_json(spec), image_size)
    except NotImplementedError:  # RegNet computes its widths with tensors, which have no values there
        with seeded(0):
            model = construct(BackboneSection.model_validate_json(spec), image_size).to("meta")
    sizes = [image_size, *(size for size in LARGER_SIZES if size > image_size)]
    try:
        return make_plan(model, [fixed] if (fixed := _only_size(model)) else sizes)
    except (fx.proxy.TraceError, StopIteration) as error:  # only with networks of other packages: torchvision's can all be cut
        why = f"torch.fx cannot trace it: {error}" if str(error) else "it has no Linear layer to classify by"
        name = BackboneSection.model_validate_json(spec).name
        raise UserError(f"training.backbone.name: {name} cannot be used: {why}") from None


def _only_size(model: nn.Module) -> int | None:
    """The one side of images, in pixels, that a Vision Transformer takes; None for other networks."""
    if isinstance(model, VisionTransformer):
        return model.image_size
    return timm_size(model)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator, by which torch initialises all weights, inside the block, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield


def model_names() -> list[str]:
    """Names of all networks that a recipe can name; raises `UserError` if another package adds a name that is taken."""
    return sorted([*_torchvision_names(), *_OWN, *_added()])


@cache
def _added() -> dict[str, EntryPoint]:
    """The networks that other packages add by entry points of the group `pseudolabel.backbones`."""
    return points_of("pseudolabel.backbones", [*_torchvision_names(), *_OWN])


def _torchvision_names() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


def _resnet10(**args: Any) -> ResNet:
    """A ResNet with one basic block a stage, for short runs on a CPU."""
    return ResNet(BasicBlock, [1, 1, 1, 1], **args)


_OWN = {"resnet10": _resnet10}


def construct(spec: BackboneSection, image_size: int) -> nn.Module:
    """Build the whole network that a backbone is cut from, classifier included; arguments and errors as of `build_backbone`."""
    if spec.provider == "timm":
        return construct_timm(spec, image_size)
    if spec.name in _added():
        if spec.stem == "small":
            raise UserError(
                f"training.backbone.stem: {spec.name} has its own first layers, which cannot be changed; leave it out"
            )
        return _call_builder(spec, {})
    small = is_small(spec.stem, image_size)
    if spec.name.startswith("vit_"):
        return _construct_vit(spec, image_size, small)
    model = _call_builder(spec, {})
    if small:
        keep_resolution(model)
    return model


def _construct_vit(spec: BackboneSection, image_size: int, small: bool) -> nn.Module:
    with torch.device("meta"):  # without weights, only to read its sizes
        draft = _call_builder(spec, {})
    assert isinstance(draft, VisionTransformer)
    patch = min(draft.patch_size, max(1, image_size // 8)) if small else draft.patch_size
    if image_size < patch:
        raise UserError(f"training.backbone: {spec.name} needs images of {patch} px or more; set stem: small")
    if patch < draft.patch_size:
        return with_patches(draft, patch, image_size // patch)
    return _call_builder(spec, {"image_size": image_size // patch * patch})


def _call_builder(spec: BackboneSection, defaults: dict[str, Any]) -> nn.Module:
    names = model_names()
    if spec.name not in names:
        near = difflib.get_close_matches(spec.name, names, n=8, cutoff=0.3) or ["resnet18", "resnet50", "vit_b_16"]
        rest = f"and the rest of torchvision's {len(_torchvision_names())}"
        raise UserError(f"training.backbone.name: {unknown_name('backbone', spec.name, near)}, {rest}")
    if "weights" in spec.args:
        raise UserError(
            "training.backbone.args.weights: a backbone starts from random weights here; leave it out, or set "
            "training.backbone.weights to a file or URL of weights"
        )
    if spec.name in ("googlenet", "inception_v3"):
        defaults = {"aux_logits": False, "init_weights": True, **defaults}
    try:
        if spec.name in _OWN:
            return _OWN[spec.name](**defaults, **spec.args)
        if spec.name in _added():
            return _built(_added()[spec.name], spec.args)
        return torchvision.models.get_model(spec.name, weights=None, **{**defaults, **spec.args})
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"training.backbone.args: {spec.name} refuses them: {error}") from None


def _built(point: EntryPoint, args: dict[str, Any]) -> nn.Module:
    """Build the network of another package."""
    model = load(point)(**args)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"training.backbone.name: {point.name} ({point.value}) returns a {type(model).__name__}, not an nn.Module"
        )
    return model


def _shortest(layers: dict[str, Cut]) -> list[str]:
    """Layer names to suggest: those of whole stages first, and no more than fit in one message."""
    return sorted(layers, key=lambda path: path.count("."))[:24]
