"""Downstream evaluation on labelled images: linear probe, nearest neighbours, fine-tuning, and a baseline without a network."""

from trainers.downstream.histogram import colour_histogram
from trainers.downstream.knn import knn
from trainers.downstream.linear import linear_probe

__all__ = ["colour_histogram", "knn", "linear_probe"]
