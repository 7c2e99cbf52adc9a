"""Exports the backbone of a run to the format of another library, and checks that it computes the same there."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from pipeline.errors import RunError, UserError, installing
from pipeline.storage import absolute, is_writable, join, make_folder, names, write_atomic
from trainers.exports.card import model_card
from trainers.exports.finished import FeatureExtractor, FinishedRun, open_run
from trainers.exports.timm_form import timm_form
from trainers.exports.torchvision_form import RestoredNetwork, reading_lines, torchvision_form
from trainers.networks.backbones import seeded

Format = Literal["torchvision", "timm", "safetensors", "onnx", "huggingface"]
FORMATS: tuple[Format, ...] = get_args(Format)

TOLERANCE = 1e-4
"""Largest difference that is accepted, as a share of the largest feature: kernels of other libraries sum in another order."""

BATCHES = (1, 2, 7)
"""Sizes of the batches on which an exported network is compared."""

_NEEDED = {
    "torchvision": (),
    "timm": ("timm", "safetensors"),
    "safetensors": ("safetensors",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "huggingface": ("timm", "safetensors"),
}

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Args:
        folder: where it lies.
        files: names of its files there.
        difference: the largest difference between its features and the backbone's, on batches of 1, 2 and 7 images.
        largest: the largest of these features.
        width: length of the feature vectors.
        size: side of the images, pixels.
    """

    folder: str
    files: tuple[str, ...]
    difference: float
    largest: float
    width: int
    size: int


@dataclass(frozen=True)
class _Written:
    """Files in a folder: the network loaded back from them by the library that they are for, and code that does the same."""

    network: Network
    code: str


def export(run: str, to: Format, out: str, tolerance: float = TOLERANCE) -> Exported:
    """Export the backbone of a finished run, with its preprocessing and a model card.

    The network maps normalised images, float32 (n, 3, size, size) for any n, to feature vectors, float32 (n, width). It is
    loaded back and compared before anything is written to `out`.

    Args:
        run: the run's folder, a path or URL.
        to: `torchvision` and `safetensors`: weights under torchvision's names; `timm` and `huggingface`: a folder that
            `timm.create_model("local-dir:...")` and transformers' `AutoModel` read; `onnx`: a network for any ONNX runtime.
        out: folder for the files, a path or URL; new or empty.
        tolerance: the largest difference that is accepted, as a share of the largest feature.

    Raises:
        UserError: there is no such run, its network does not exist in that library, packages are missing, or the folder is not
            empty.
        RunError: the exported network computes something else; nothing is written.
    """
    _check(to, out)
    finished = open_run(run)
    extractor = finished.network
    with tempfile.TemporaryDirectory() as place, seeded(0):
        folder = Path(place)
        written = _WRITERS[to](finished, folder)
        difference, largest = _compare(extractor, written.network)
        if not difference <= tolerance * largest:
            raise RunError(
                f"the exported network's features differ by up to {difference:.2g} from the backbone's, whose largest is "
                f"{largest:.2g}, and {tolerance:.2g} of that is accepted: nothing was written; take another format"
            )
        (folder / "README.md").write_text(model_card(finished, to, written.code, difference, largest))
        files = tuple(sorted(path.name for path in folder.iterdir()))
        make_folder(out)
        for name in files:
            with write_atomic(join(out, name)) as file:
                file.write((folder / name).read_bytes())
    return Exported(absolute(out), files, difference, largest, extractor.width, extractor.preprocessing.size)


def _check(to: Format, out: str) -> None:
    if to not in FORMATS:
        raise UserError(f"--to {to}: unknown; the formats are {', '.join(FORMATS)}")
    if Path(out).suffix in (".onnx", ".pt", ".pth", ".safetensors"):
        raise UserError(f"--out {out}: an export is a folder of several files; name one without {Path(out).suffix}")
    if not is_writable(out):
        raise UserError(f"--out {out}: this storage cannot be written")
    if there := names(out):
        raise UserError(f"--out {out} is not empty: it holds {there[0]}; name another folder, or delete this one")
    missing = [package for package in _NEEDED[to] if find_spec(package) is None]
    if missing:
        raise UserError(f"--to {to} needs {', '.join(missing)}: {installing('export')}")


@torch.no_grad()
def _compare(extractor: FeatureExtractor, other: Network) -> tuple[float, float]:
    """The largest difference of features, and the largest feature, on normal noise, which reaches all that pixels do."""
    found = []
    generator, size = torch.Generator().manual_seed(0), extractor.preprocessing.size
    for n in BATCHES:
        images = torch.randn(n, 3, size, size, generator=generator)
        ours, theirs = extractor(images), other(images)
        if ours.shape != theirs.shape:
            raise RunError(f"the exported network gives features of shape {tuple(theirs.shape)}, not {tuple(ours.shape)}")
        found.append(torch.stack([(ours - theirs).abs().max(), ours.abs().max()]))
    difference, largest = torch.stack(found).amax(0).tolist()  # NaN, if there is one
    return difference, largest


def _state(extractor: FeatureExtractor) -> dict[str, Tensor]:
    """The trained weights under the library's own names, each with memory of its own."""
    state = extractor.backbone.network.state_dict()
    return {name: weight.clone().contiguous() for name, weight in state.items() if name in extractor.trained}


def _to_torchvision(finished: FinishedRun, folder: Path) -> _Written:
    form, state = torchvision_form(finished.network), _state(finished.network)
    torch.save(state, folder / "model.pth")
    back = torch.load(folder / "model.pth", weights_only=True)
    code = reading_lines(form, 'torch.load("model.pth", weights_only=True)')
    return _Written(RestoredNetwork(form, back, finished.network.layer), code)


def _to_safetensors(finished: FinishedRun, folder: Path) -> _Written:
    from safetensors.torch import load_file, save_file

    form, state = torchvision_form(finished.network), _state(finished.network)
    save_file(state, folder / "model.safetensors", {"format": "pt", **_about(finished)})
    code = "import safetensors.torch\n" + reading_lines(form, 'safetensors.torch.load_file("model.safetensors")')
    return _Written(RestoredNetwork(form, load_file(folder / "model.safetensors"), finished.network.layer), code)


def _to_timm(finished: FinishedRun, folder: Path) -> _Written:
    import timm
    from safetensors.torch import save_file

    extractor, about = finished.network, finished.network.preprocessing
    architecture, args, state = timm_form(extractor, _state(extractor))
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": extractor.width,
        "model_args": args,
        "pretrained_cfg": {
            "tag": "pseudolabel",
            "num_classes": 0,
            "input_size": [3, about.size, about.size],
            "mean": about.mean,
            "std": about.std,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    code = (
        'import timm\nnetwork = timm.create_model("local-dir:.", pretrained=True).eval()\n'
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))\nfeatures = network(images)"
    )
    return _Written(network, code)


def _to_huggingface(finished: FinishedRun, folder: Path) -> _Written:
    written = _to_timm(finished, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "timm_wrapper"}, indent=1))
    code = (
        "from transformers import AutoImageProcessor, AutoModel\n"
        'processor, network = AutoImageProcessor.from_pretrained("."), AutoModel.from_pretrained(".").eval()\n'
        "features = network(pixel_values=images).pooler_output"
    )
    return _Written(written.network, code)


def _to_onnx(finished: FinishedRun, folder: Path) -> _Written:
    import onnx
    import onnxruntime

    extractor, path = finished.network, folder / "model.onnx"
    size = extractor.preprocessing.size
    example = torch.randn(2, 3, size, size)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one kernel for all of attention, which ONNX has not
    try:
        program = torch.onnx.export(
            extractor,
            (example,),
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            dynamo=True,
            verbose=False,
        )
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    assert program is not None
    program.save(path)
    model = onnx.load(path)
    onnx.helper.set_model_props(model, _about(finished))
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    code = (
        'import onnxruntime\nsession = onnxruntime.InferenceSession("model.onnx")\n'
        '(features,) = session.run(["features"], {"images": images})'
    )
    return _Written(lambda images: torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0]), code)


def _about(finished: FinishedRun) -> dict[str, str]:
    """What a file of weights says of itself: texts by name."""
    extractor, about = finished.network, finished.network.preprocessing
    return {
        "network": extractor.spec.name,
        "size": str(about.size),
        "mean": json.dumps(about.mean),
        "std": json.dumps(about.std),
        "recipe_sha256": str(finished.pretrained.get("recipe_sha256", "")),
    }


_WRITERS: dict[Format, Callable[[FinishedRun, Path], _Written]] = {
    "torchvision": _to_torchvision,
    "timm": _to_timm,
    "safetensors": _to_safetensors,
    "onnx": _to_onnx,
    "huggingface": _to_huggingface,
}
