"""Networks with one view objective, and a batch of views for them."""

from __future__ import annotations

import pytest

from tests.trainers.views import N, view_columns, view_task
from trainers.learning.pretext import PretextModel
from trainers.networks.inputs import to_device


@pytest.fixture
def case(recipe, crops):
    """`case(name, small)`: a network with one view objective in training, and its batch on the device."""

    def make(name: str, small: bool = False):
        model = PretextModel(recipe(view_task(name, small)), seed=0).train()
        batch = to_device(view_columns(crops, N, small), "cpu")
        return model, model.objectives["simclr"], batch

    return make
