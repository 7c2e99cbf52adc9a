"""A plan is compared with the nodes of a live cluster, and refused with what to change if it does not fit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from trainers.running.capacity import Node, Piece, advice, check_nodes, nodes, pieces

MakeRecipe = Callable[..., Recipe]

_WORKER = Piece("training worker", "training", 3, 0)
_ACTOR = Piece("actor", "placement", 1, 0)


def test_a_worker_that_is_larger_than_every_node_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"training worker needs 3 CPUs on one node, and the nodes have 4 x 2 CPUs: lower training\.cpus"
    ):
        check_nodes([_WORKER], [Node(2)] * 4)
    with pytest.raises(UserError, match=r"needs 1 CPUs and 1 GPUs on one node.*placement\.cpus or placement\.gpus"):
        check_nodes([Piece("actor", "placement", 1, 1)], [Node(8)])


def test_what_fits_in_sum_and_not_node_by_node_is_refused() -> None:
    check_nodes([_WORKER] * 2 + [_ACTOR] * 2, [Node(4)] * 2)
    with pytest.raises(
        UserError, match=r"in sum but not node by node: with 2 of its 3 parts placed, no node has 3 CPUs left.*2 x 5 CPUs"
    ):
        check_nodes([_WORKER] * 3, [Node(5)] * 2)


def test_actors_without_gpus_leave_gpu_nodes_to_those_that_need_them() -> None:
    trainer = Piece("training worker", "training", 2, 1)
    check_nodes([_ACTOR] * 4 + [trainer] * 2, [Node(2, 1), Node(2, 1), Node(4)])


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2)), min_size=1, max_size=12), st.randoms())
def test_whatever_was_dealt_out_of_nodes_of_its_own_fits(sizes: list[tuple[int, int]], rng: object) -> None:
    wanted = [Piece("actor", "placement", cpus, gpus) for cpus, gpus in sizes]
    there = [Node(cpus, gpus) for cpus, gpus in sizes]
    rng.shuffle(there)  # type: ignore[attr-defined]
    check_nodes(wanted, there)
    with pytest.raises(UserError):
        check_nodes([*wanted, Piece("actor", "placement", 1, 0)], there)


def test_pieces_are_those_of_the_recipe(run_recipe: MakeRecipe) -> None:
    spec = run_recipe({"placement": {"actors": 3, "cpus": 0.5, "gpus": 0.25}}, workers=2, cpus=2)
    assert [(piece.name, piece.cpus, piece.gpus) for piece in pieces(spec, trains=True)] == [("training worker", 2, 0)] * 2 + [
        ("actor", 0.5, 0.25)
    ] * 3
    assert len(pieces(spec, trains=False)) == 3
    reading = run_recipe({"placement": {"render": "trainer", "gpus": 0.25}}, workers=1)
    assert [piece.gpus for piece in pieces(reading, trains=True)] == [0, 0]


def test_what_others_hold_and_a_small_object_store_are_said(run_recipe: MakeRecipe) -> None:
    spec = run_recipe(workers=1)
    wanted, there = pieces(spec, True), [Node(4, 0, 10 * 2**30)]
    assert advice(spec, True, wanted, there, {"CPU": 4.0}) == []
    (words,) = advice(spec, True, wanted, there, {"CPU": 1.0})
    assert "needs 1.5 CPUs, and 1 of 4 are free now" in words
    (words,) = advice(spec, True, wanted, [Node(4, 0, 2**10)], {"CPU": 4.0})
    assert "the object store has 0 MiB" in words
    assert "training.order.window" in words
    assert advice(spec, False, pieces(spec, False), [Node(4, 0, 2**10)], {"CPU": 4.0}) == []


@pytest.mark.usefixtures("local_ray")
def test_the_live_cluster_is_seen() -> None:
    (node,) = nodes()
    assert (node.cpus, node.gpus) == (6, 0)
    assert 0 < node.store < node.memory
