"""Learning from few labels: FixMatch's loss is its formula, and images of unknown class have no part in what labels teach."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.draws import Draws
from pipeline.engines.cpu_ops import CpuOps
from pipeline.tasks.fixmatch import Fixmatch
from tests.pipeline.made_images import photo
from trainers.learning.gradients import accumulate
from trainers.learning.loop import means
from trainers.learning.pretext import PretextModel

CLASSES = torch.tensor([0, -1, 3, -1, -1, 1, -1, -1])


def fixmatch(recipe, **objective):
    model = PretextModel(recipe(("fixmatch", {"classes": 4, "objective": objective})), seed=0)
    return model, model.objectives["fixmatch"]


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def logits(scale: float = 3.0) -> Tensor:
    return scale * torch.randn(8, 2, 4, generator=torch.Generator().manual_seed(1))


def test_the_loss_is_that_of_the_paper(recipe) -> None:
    _, objective = fixmatch(recipe, threshold=0.9, unlabelled=0.25)
    answer, weight = logits(), torch.tensor([1.0, 1, 1, 1, 1, 1, 1, 0])
    outcome = objective.judge(answer, {"class": CLASSES, "weight": weight}, "fixmatch")
    weak, strong = log_softmax(answer.double().numpy()).transpose(1, 0, 2)
    total, sure, right = 0.0, 0, 0
    for i, label in enumerate(CLASSES.tolist()[:7]):
        if label >= 0:
            total -= weak[i, label]
            right += weak[i].argmax() == label
        elif np.exp(weak[i].max()) >= 0.9:
            total -= 0.25 * strong[i, weak[i].argmax()]
            sure += 1
    assert 0 < sure < 4
    assert outcome.loss.item() == pytest.approx(total, rel=1e-5)
    assert (outcome.metric, outcome.count, outcome.trivial) == (right, 3, 3 / 4)
    assert (outcome.also["confident"], outcome.counts["confident"]) == (sure, 4)


def test_a_share_is_shown_of_the_images_that_it_is_about() -> None:
    shown = means({"loss": 6.0, "metric": 2.0, "count": 4.0, "confident": 5.0, "confident/count": 10.0})
    assert shown == {"loss": 1.5, "metric": 0.5, "confident": 0.5}
    assert means({"loss": 0.0, "count": 0.0, "confident": 0.0, "confident/count": 0.0}) == {"loss": 0.0, "confident": 0.0}


def test_where_no_image_is_sure_and_none_labelled_the_loss_is_0_and_so_are_the_gradients(recipe, rendered) -> None:
    model, _ = fixmatch(recipe, threshold=0.99)
    batch = rendered("fixmatch", n=8) | {"class": torch.full((8,), -1)}
    outcome = model(batch)["fixmatch"]
    outcome.loss.backward()
    assert (outcome.loss, outcome.count, outcome.also["confident"]) == (0, 0, 0)
    assert all((weight.grad == 0).all() for weight in model.parameters())


def test_targets_have_no_gradient_and_the_strong_view_learns(recipe) -> None:
    _, objective = fixmatch(recipe, threshold=0.0)
    answer = logits().requires_grad_()
    objective.judge(answer, {"class": CLASSES, "weight": torch.ones(8)}, "fixmatch").loss.backward()
    known = CLASSES >= 0
    assert (answer.grad[known, 0] != 0).all()
    assert (answer.grad[~known, 1] != 0).all()
    assert not answer.grad[known, 1].any()
    assert not answer.grad[~known, 0].any()


@pytest.mark.parametrize("task", ["supervised", "fixmatch"])
def test_images_of_unknown_class_give_no_gradient_of_classes(recipe, rendered, task: str) -> None:
    """Other pixels in their place change no bit; batch normalisation, which sees all images of a batch, is as in evaluation."""
    given = {"classes": 4} | ({"objective": {"threshold": 0.999}} if task == "fixmatch" else {})
    columns = {name: column.numpy().copy() for name, column in rendered(task, n=8).items()}
    columns |= {"class": CLASSES.numpy(), "supervised.label": CLASSES.numpy()}
    found = []
    for turned in (False, True):
        model = PretextModel(recipe((task, given)), seed=0).eval()
        if turned:
            columns[f"{task}.input"][CLASSES.numpy() < 0] ^= 255
        accumulate(model, [task], columns, 8, "float32")
        found.append([weight.grad for weight in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*found))
    assert any(gradient.any() for gradient in found[0])


def test_it_is_learnt_on_a_batch(recipe, rendered) -> None:
    """Labels first; then the network is sure of other images, too."""
    model, _ = fixmatch(recipe, threshold=0.5, unlabelled=1.0)
    batch = rendered("fixmatch", n=8) | {"class": CLASSES}
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    outcomes = []
    for _ in range(25):
        outcomes.append(model(batch)["fixmatch"])
        optimizer.zero_grad()
        (outcomes[-1].loss / 8).backward()
        optimizer.step()
    assert outcomes[-1].loss < 0.5 * outcomes[0].loss
    assert outcomes[-1].metric == 3
    assert outcomes[-1].also["confident"] >= 3


def test_the_weak_view_keeps_its_pixels_and_a_part_of_the_strong_one_is_covered() -> None:
    size, task = 32, Fixmatch(jitter=1.0, blur=(1.0,), solarise=(1.0,))
    rng = Draws(1, 0, np.arange(200, dtype=np.uint64)).stream("fixmatch")
    drawn, crop = task.draw(rng, size), np.asarray(photo().resize((size, size)))
    weak, strong = (
        task.render(CpuOps(size), np.stack([crop] * 200), {name: values[:, view] for name, values in drawn.items()})
        for view in (0, 1)
    )
    assert np.array_equal(weak, np.stack([crop] * 200))
    covered = (strong == (124, 116, 104)).all(-1)
    boxes = drawn["boxes"][:, 1, 0]
    assert (boxes[:, 2] == boxes[:, 3]).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= size).all()
    assert 0 <= boxes[:, 2].min() < 3
    assert 14 <= boxes[:, 2].max() <= 16
    assert all(covered[i, t : t + h, l : l + w].all() for i, (t, l, h, w) in enumerate(boxes))  # noqa: E741
    sides = np.full(200, 300)
    shares = np.prod(task.windows(rng, sides, sides, size).boxes[:, :, 2:], axis=2) / 300**2
    assert shares[:, 0].min() > 0.74
    assert shares[:, 1].min() < 0.3
