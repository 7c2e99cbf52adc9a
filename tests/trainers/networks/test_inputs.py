"""Pixels reach the network normalised as the docstrings say, and bad samples do not reach it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trainers.networks.inputs import Normaliser, decodable, network_input, to_device

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
pixels = hnp.arrays(
    np.uint8,
    st.one_of(hnp.array_shapes(min_dims=4, max_dims=4, max_side=6), st.just((2, 3, 5, 5, 3))).map(lambda s: (*s[:-1], 3)),
)


@given(pixels)
@settings(max_examples=50, deadline=None)
def test_an_image_is_standardised_by_the_corpus(x: np.ndarray) -> None:
    y = Normaliser(MEAN, STD)(torch.from_numpy(x))
    expected = ((x.reshape(-1, *x.shape[-3:]) / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-5)
    assert y.is_contiguous(memory_format=torch.channels_last)


@given(pixels)
@settings(max_examples=50, deadline=None)
def test_a_patch_is_standardised_by_itself(x: np.ndarray) -> None:
    y = network_input(torch.from_numpy(x), torch.tensor(MEAN), torch.tensor(STD), "patch")
    flat = x.reshape(-1, *x.shape[-3:]).transpose(0, 3, 1, 2) / 255
    centre, deviation = flat.mean((2, 3), keepdims=True), flat.std((2, 3), keepdims=True)
    np.testing.assert_allclose(y.numpy(), (flat - centre) / (deviation + 1 / 255), atol=1e-3)


def test_patches_of_a_sample_stay_in_a_row() -> None:
    x = torch.arange(6, dtype=torch.uint8).view(2, 3, 1, 1, 1) * 10
    y = network_input(x, torch.zeros(3), torch.ones(3))
    assert y.shape == (6, 3, 1, 1)
    torch.testing.assert_close(y[:, 0, 0, 0] * 255, torch.arange(6.0) * 10)


@pytest.mark.parametrize("norm", ["image", "patch"])
def test_grey_becomes_three_channels(norm: str) -> None:
    x = torch.randint(0, 256, (2, 4, 4, 1), dtype=torch.uint8)
    normalise = Normaliser(MEAN, STD)
    torch.testing.assert_close(normalise(x, norm), normalise(x.expand(-1, -1, -1, 3), norm))
    assert normalise(x, norm).shape == (2, 3, 4, 4)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        Normaliser(MEAN, STD)(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def test_the_statistics_are_no_weights() -> None:
    assert Normaliser(MEAN, STD).state_dict() == {}


def test_columns_become_tensors_of_their_own_type_and_text_stays_behind() -> None:
    image = np.full((2, 4, 4, 3), 7, np.uint8)
    image.flags.writeable = False
    batch = to_device(
        {
            "image": image,
            "id": np.array([1, 2**64 - 1], np.uint64),
            "weight": torch.ones(2),
            "failure": np.array(["", "no image"], object),
            "key": ["a", "b"],
        },
        "cpu",
    )
    assert {name: column.dtype for name, column in batch.items()} == {
        "image": torch.uint8,
        "id": torch.uint64,
        "weight": torch.float32,
    }
    batch["image"].zero_()
    assert (image == 7).all()


def test_samples_of_weight_zero_are_left_out_if_two_others_remain() -> None:
    columns = {"weight": np.float32([1, 0, 1]), "id": np.uint64([4, 5, 6]), "image": torch.arange(3)}
    left = decodable(columns)
    assert {name: column.tolist() for name, column in left.items()} == {"weight": [1, 1], "id": [4, 6], "image": [0, 2]}
    for weight in ([1, 1, 1], [1, 0, 0], [0, 0, 0]):
        whole = columns | {"weight": np.float32(weight)}
        assert decodable(whole) is whole
