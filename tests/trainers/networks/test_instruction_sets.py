"""A network trains to the same numbers by the instructions of older processors and of newer ones, where this one has them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.processes.cpu import cpu_info
from tests.pipeline.children import run_python

SETS = {"AVX2": "AVX2", "AVX512_CORE": "AVX512BW", "AVX512_CORE_BF16": "bfloat16", "AVX512_CORE_AMX": "AMX"}
"""Values of ONEDNN_MAX_CPU_ISA, and what oneDNN says where it takes such instructions."""

FLAGS = {"AVX2": "avx2", "AVX512_CORE": "avx512f", "AVX512_CORE_BF16": "avx512_bf16", "AVX512_CORE_AMX": "amx_bf16"}
"""What Linux calls them."""

TRAIN = """
    import json, os, sys, tempfile
    import torch
    from pipeline.recipe import parse_recipe
    from trainers.learning.optim import place
    from trainers.learning.pretext import PretextModel
    from trainers.networks.precision import autocast, disagreements

    torch.set_num_threads(1)
    recipe = parse_recipe({"name": "a", "seed": 1, "corpus": {"shards": "x"}, "image": {"size": 32}, "tasks": {"rotation": {}},
                           "training": {"backbone": {"name": "resnet10", "stem": "standard"}}})
    pixels = torch.randint(256, (16, 32, 32, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    batch = {"id": torch.arange(16), "weight": torch.ones(16), "image": pixels, "rotation.input": pixels,
             "rotation.label": torch.arange(16) % 4}

    def losses(precision):
        model, found = place(PretextModel(recipe, seed=0), "cpu"), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(3):
            with autocast("cpu", precision):
                loss = model(batch)["rotation"].loss.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    def told(most, out):
        '''oneDNN reads its environment when it is first called: each process here does that for itself.'''
        os.environ |= {"ONEDNN_MAX_CPU_ISA": most, "ONEDNN_VERBOSE": "1"}
        os.dup2(out, 1)
        model = place(PretextModel(recipe, seed=0), "cpu").eval()
        wrong = disagreements("cpu", lambda: model(batch))
        print("found", json.dumps([losses("float32"), losses("bfloat16"), wrong]), flush=True)

    for most in sys.argv[1:]:
        with tempfile.TemporaryFile("w+") as out:
            if not (child := os.fork()):
                told(most, out.fileno())
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0, most
            out.seek(0)
            lines = out.read().splitlines()
        taken = next(line.partition("cpu,isa:")[2] for line in lines if "cpu,isa:" in line)
        float32, bfloat16, wrong = json.loads(next(line for line in lines if line.startswith("found ")).removeprefix("found "))
        print(json.dumps({"most": most, "taken": taken, "float32": float32, "bfloat16": bfloat16, "wrong": wrong}))
"""


@pytest.fixture(scope="module")
def trained() -> dict[str, dict[str, Any]]:
    """By set of instructions: which oneDNN took, the losses of three steps in each precision, and which products were wrong."""
    flags = cpu_info().get("flags", "").split()
    done = run_python(TRAIN, *(most for most in SETS if FLAGS[most] in flags), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return {found["most"]: found for found in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("most", SETS)
def test_three_steps_come_to_the_same_losses_in_both_precisions(trained: dict[str, dict[str, Any]], most: str) -> None:
    if most not in trained:
        pytest.skip(f"this processor has no {most}")
    found = trained[most]
    assert SETS[most] in found["taken"]
    wanted = trained["AVX2"]["float32"]
    assert wanted[2] < wanted[0]
    assert found["float32"] == pytest.approx(wanted, rel=1e-3)
    assert found["bfloat16"] == pytest.approx(wanted, rel=0.05)
    assert found["wrong"] == []
