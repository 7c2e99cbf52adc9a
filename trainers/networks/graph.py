"""Reads a network as a graph: which of its tensors are its feature vector, its last spatial map and its named layers.

A network is cut only where a single tensor carries everything on (the end of a block, never the middle of a branch), so
what a cut returns is what the network itself goes on with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torchvision.models import SwinTransformer, VisionTransformer
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from pipeline.errors import UserError

Layout = Literal["nchw", "nhwc", "tokens", "flat"]

_LEVELS = 3  # of a pyramid

REFUSALS = (RuntimeError, AssertionError, ValueError)
"""Errors that torch's layers raise for a size that they cannot take."""


@dataclass(frozen=True)
class Cut:
    """A tensor at which the network can be cut: torchvision's path, fx's name, its shape for one image, and what its axes are."""

    path: str
    node: str
    shape: tuple[int, ...]
    layout: Layout
    prefix: int = 1
    """Tokens before those of the patches."""

    @property
    def width(self) -> int:
        """Number of channels."""
        return self.shape[1] if self.layout in ("nchw", "flat") else self.shape[-1]

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width; (1, 1) for a vector."""
        match self.layout:
            case "nchw":
                return self.shape[2], self.shape[3]
            case "nhwc":
                return self.shape[1], self.shape[2]
            case "tokens":
                side = math.isqrt(self.shape[1] - self.prefix)
                return side, side
            case "flat":
                return 1, 1

    def pooled(self, x: Tensor) -> Tensor:
        """Mean over positions: (n, width). Of tokens, only those of patches count."""
        match self.layout:
            case "nchw":
                return x.mean((2, 3))
            case "nhwc":
                return x.mean((1, 2))
            case "tokens":
                return x[:, self.prefix :].mean(1)
            case "flat":
                return x.flatten(1)

    def grid(self, x: Tensor) -> Tensor:
        """The same tensor as a map, (n, width, h, w)."""
        if self.layout == "nhwc":
            return x.permute(0, 3, 1, 2)
        if self.layout == "tokens":
            return x[:, self.prefix :].transpose(1, 2).unflatten(2, self.extent)
        return x


@dataclass(frozen=True)
class NetworkPlan:
    """Where a network is cut for images of `size` pixels, and the names of all its weights.

    The pyramid is the last cut of each of the three coarsest resolutions (of fewer, where there are fewer), from fine to coarse;
    it ends with the map.
    """

    size: int
    vector: Cut
    map: Cut
    pyramid: tuple[Cut, ...]
    layers: dict[str, Cut]
    weights: frozenset[str]


def make_plan(model: nn.Module, sizes: Sequence[int]) -> NetworkPlan:
    """Find the vector, the map and the named layers of a torchvision classification network.

    The vector is what the last Linear layer sees (the last convolution, where a network classifies by one). The map is the last
    cut before it with more than one position; a map that adaptive pooling enlarged again does not count.

    Args:
        model: the whole network, classifier included.
        sizes: sides of images in pixels; the plan is for the first one that the network can take.

    Raises:
        UserError: it can take none of them, or no tensor before the vector has more than one position.
    """
    in_training, in_evaluation = get_graph_node_names(model, suppress_diff_warning=True)
    both = set(in_training)
    traced = create_feature_extractor(model, {p: p for p in in_evaluation if p in both}, suppress_diff_warning=True)
    graph: fx.Graph = traced.eval_graph
    outputs: Any = graph.output_node().args[0]
    path_of = {node.name: path for path, node in outputs.items()}
    size, shapes = _first_that_fits(traced, graph, sizes)

    last = next(n for n in reversed(graph.nodes) if _is_classifier(traced, n))
    cuts = []
    for node in _cut_nodes(graph, last.args[0]):
        if node.name in path_of and len(shapes.get(node.name, ())) >= 2:
            path, shape = path_of[node.name], shapes[node.name]
            cuts.append(Cut(path, node.name, shape, _layout(model, path, shape), getattr(model, "num_prefix_tokens", 1)))
    modules = {path for path, _ in model.named_modules()}
    last_map = _last_map(cuts, size)
    pyramid = _pyramid(cuts[: cuts.index(last_map) + 1])
    return NetworkPlan(size, cuts[-1], last_map, pyramid, _layers(cuts, path_of, modules), frozenset(model.state_dict()))


def refusal(root: nn.Module, graph: fx.Graph, size: tuple[int, int]) -> str | None:
    """Why a network cannot take images of `size` (h, w); None if it can."""
    try:
        shapes_of(root, graph, size)
    except REFUSALS as error:
        return _words(error)
    return None


def shapes_of(root: nn.Module, graph: fx.Graph, size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the graph for two images of `size` (h, w), found without computing anything; by node name.

    Raises:
        RuntimeError, AssertionError, ValueError: from the network, which cannot take images of this size (`REFUSALS`).
    """
    shapes: dict[str, tuple[int, ...]] = {}

    class Record(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            out = super().run_node(n)
            if isinstance(out, Tensor):
                shapes[n.name] = tuple(out.shape)
            return out

    class Run(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.root = root

        def forward(self, x: Tensor) -> Any:
            return Record(self.root, graph=graph).run(x)

    run = Run()
    state = {name: torch.empty_like(t, device="meta") for name, t in (*run.named_parameters(), *run.named_buffers())}
    with torch.no_grad(), torch.device("meta"):
        torch.func.functional_call(run, state, (torch.empty(2, 3, *size),))
    return shapes


def until(root: nn.Module, graph: fx.Graph, *nodes: str) -> fx.GraphModule:
    """The part of a network that ends at one node, or at the last of several, whose outputs it then returns together.

    It shares its weights with `root`.
    """
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    ends: dict[str, fx.Node] = {}
    for node in graph.nodes:
        copies[node] = part.node_copy(node, copies.__getitem__)
        if node.name in nodes:
            ends[node.name] = copies[node]
        if len(ends) == len(set(nodes)):
            part.output(ends[nodes[0]] if len(nodes) == 1 else tuple(ends[name] for name in nodes))
            break
    module = fx.GraphModule(root, part)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _first_that_fits(root: nn.Module, graph: fx.Graph, sizes: Sequence[int]) -> tuple[int, dict[str, tuple[int, ...]]]:
    why = []
    for size in sizes:
        try:
            return size, shapes_of(root, graph, (size, size))
        except REFUSALS as error:
            why.append(_words(error))
    raise UserError(f"training.backbone: it cannot take images of {sizes[0]} px ({why[0]}), nor of {sizes[-1]} px")


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _is_classifier(root: nn.Module, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(root.get_submodule(str(node.target)), nn.Linear | nn.Conv2d)


def _cut_nodes(graph: fx.Graph, end: Any) -> list[fx.Node]:
    """Nodes on the way to `end` at which nothing that was computed earlier is still needed."""
    needed = {end}
    for node in reversed(graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    way = [node for node in graph.nodes if node in needed]
    place = {node: i for i, node in enumerate(way)}
    cuts, alive_until = [], 0
    for i, node in enumerate(way):
        if node.op == "get_attr":
            continue
        if alive_until <= i and node.op != "placeholder":
            cuts.append(node)
        alive_until = max([alive_until, *(place[user] for user in node.users if user in place)])
    return cuts


def _layout(model: nn.Module, path: str, shape: tuple[int, ...]) -> Layout:
    if is_timms(model):
        inside = path.startswith(("blocks", "layers", "norm"))  # before these, tokens lack their prefix, and maps are of patches
        nhwc = getattr(model, "output_fmt", "NCHW") == "NHWC" and inside
        tokens = hasattr(model, "num_prefix_tokens") and inside
        return ("nhwc" if nhwc else "nchw") if len(shape) == 4 else "tokens" if len(shape) == 3 and tokens else "flat"
    if len(shape) == 4:  # Swin keeps its channels last between its first convolution and the permutation before its pooling
        swin = isinstance(model, SwinTransformer) and path.startswith(("features", "norm"))
        return "nhwc" if swin and path != "features.0.0" else "nchw"
    inside = isinstance(model, VisionTransformer) and path.startswith("encoder")  # before it, the class token is missing
    return "tokens" if len(shape) == 3 and inside else "flat"


def is_timms(model: nn.Module) -> bool:
    """Whether a network is one of timm's."""
    return type(model).__module__.startswith("timm.")


def _last_map(cuts: list[Cut], size: int) -> Cut:
    found, smallest = None, size * size
    for cut in cuts:
        if cut.layout == "flat":
            continue
        area = math.prod(cut.extent)
        if area <= smallest and min(cut.extent) > 1:
            found = cut
        smallest = min(smallest, area)
    if found is None:
        raise UserError(
            f"training.backbone: no layer keeps more than one position of images of {size} px; choose a larger image.size"
        )
    return found


def _pyramid(cuts: list[Cut]) -> tuple[Cut, ...]:
    by_extent = {cut.extent: cut for cut in cuts if cut.layout != "flat" and min(cut.extent) > 1}
    return tuple(list(by_extent.values())[-_LEVELS:])


def _layers(cuts: list[Cut], path_of: dict[str, str], modules: set[str]) -> dict[str, Cut]:
    """Modules whose result is a cut, by their path; a module that is entered twice counts with its last result."""
    ends: dict[str, str] = {}
    for node, path in path_of.items():
        parts = path.split(".")
        for depth in range(1, len(parts) + 1):
            ends[".".join(parts[:depth])] = node
    at = {cut.node: cut for cut in cuts}
    return {path: at[node] for path, node in ends.items() if node in at and path in modules}
