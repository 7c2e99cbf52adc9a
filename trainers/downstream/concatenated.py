"""The concatenated probe: a linear classifier on the features of several layers side by side."""

from __future__ import annotations

from trainers.downstream.features import FeatureRows, Rank
from trainers.downstream.guesses import Guesses
from trainers.downstream.linear import classify


def side_by_side(train: FeatureRows, test: FeatureRows, classes: int, seed: int, rank: Rank) -> tuple[Guesses, str]:
    """Classify a rank's test samples by a linear probe on several layers (as Caron et al. 2021, "Emerging properties in
    self-supervised vision transformers", section 4.1, put the last four side by side); to be called on every rank.

    Protocol: each layer's output is averaged over positions, the vectors are put side by side, every feature is standardised, and
    the probe is that of `trainers.downstream.linear.classify`, whose arguments and result these are.
    """
    return classify(train, test, classes, seed, rank)
