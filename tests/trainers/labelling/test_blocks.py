"""What a row is given depends neither on its place among the rows nor on where its numbers lie in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.labelling.blocks import BlockPool
from trainers.labelling.kmeans import assign
from trainers.labelling.pca import projected
from trainers.labelling.selflabel import log_answers

POOL = BlockPool(1)


def at(array: np.ndarray, offset: int) -> np.ndarray:
    """A copy that starts so many bytes after a multiple of 64; numpy's own start at any multiple of 16."""
    raw = np.empty(array.nbytes + 128, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


WORKS = {
    "assign": lambda x, rows: assign(x, rows, False, POOL),
    "projected": lambda x, rows: [projected(x, rows, POOL)],
    "log_answers": lambda x, rows: [log_answers(x, np.pad(rows, ((0, 0), (0, 1)), constant_values=0.5), POOL)],
}


@pytest.mark.parametrize("work", WORKS)
@given(seed=st.integers(0, 10**6), rows=st.integers(2, 40), width=st.sampled_from([5, 64, 513]), offset=st.sampled_from([16, 48]))
@settings(max_examples=25)
def test_neither_the_place_of_a_row_nor_that_of_an_array_in_memory_changes_a_bit(
    work: str, seed: int, rows: int, width: int, offset: int
) -> None:
    random = np.random.default_rng(seed)
    x, table = (random.normal(size=(n, width)).astype(np.float32) for n in (100, rows))
    turned = random.permutation(100)
    for one, elsewhere, other in zip(
        WORKS[work](at(x, 0), at(table, 0)), WORKS[work](at(x, offset), at(table, offset)), WORKS[work](x[turned], table)
    ):
        np.testing.assert_array_equal(elsewhere, one)
        np.testing.assert_array_equal(other, one[turned])


def test_answers_are_those_of_the_layer() -> None:
    layer, x = torch.nn.Linear(12, 5), torch.randn(7, 12)
    with torch.no_grad():
        wanted = layer(x).log_softmax(1)
        linear = torch.cat([layer.weight, layer.bias[:, None]], 1).numpy()
    torch.testing.assert_close(log_answers(x.numpy(), linear, POOL), wanted)
    assert log_answers(x.numpy()[:0], linear, POOL).shape == (0, 5)
