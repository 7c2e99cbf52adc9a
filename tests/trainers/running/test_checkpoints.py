"""Checkpoints: whole or not at all, as many as asked for, and a damaged one is skipped with a warning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainers.running.checkpoints import Checkpoints


def saved(folder: Path, steps: range, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(str(folder), keep)
    for step in steps:
        checkpoints.save(step, {"step": step, "model": {"w": torch.full((50,), float(step))}})
    checkpoints.wait()
    return checkpoints


def test_the_newest_are_kept_and_the_newest_of_all_is_found(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path / "run", range(1, 6))
    assert [int(name[5:17]) for name in checkpoints.names()] == [5, 4]
    name = checkpoints.newest()
    assert name is not None
    assert checkpoints.load(name)["model"]["w"][0] == 5


def test_a_state_is_taken_when_it_is_saved_and_not_when_it_is_written(tmp_path: Path) -> None:
    checkpoints, weights = Checkpoints(str(tmp_path), 2), torch.zeros(1_000_000)
    checkpoints.save(1, {"w": weights})
    weights += 1
    checkpoints.wait()
    name = checkpoints.newest()
    assert name is not None
    assert checkpoints.load(name)["w"].sum() == 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning_and_mended_when_its_step_comes_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = saved(tmp_path, range(1, 4), keep=3)
    newest = tmp_path / checkpoints.names()[0]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes({"cut": content[: len(content) // 2], "flipped": content, "emptied": b""}[damage])
    name = checkpoints.newest()
    assert name is not None
    assert checkpoints.load(name)["step"] == 2
    assert f"{newest.name} is skipped, and the one before it is used: it is damaged" in caplog.text
    again = saved(tmp_path, range(3, 4), keep=3)
    assert len(again.names()) == 3
    assert again.load(again.newest() or "")["step"] == 3


def test_saving_an_earlier_step_beside_a_damaged_later_one_does_not_remove_the_only_whole_one(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, range(8, 9), keep=1)
    (tmp_path / checkpoints.names()[0]).write_bytes(b"")
    again = saved(tmp_path, range(6, 7), keep=1)
    assert again.load(again.newest() or "")["step"] == 6


def test_when_a_run_is_over_all_but_one_go(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, range(1, 4), keep=3)
    newest = checkpoints.newest()
    assert newest is not None
    checkpoints.discard_all_but(newest)
    assert checkpoints.names() == [newest]


def test_an_empty_or_missing_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert Checkpoints(str(tmp_path / "none"), 2).newest() is None
    assert Checkpoints(str(tmp_path), 2).newest() is None


def test_what_cannot_be_written_is_said_at_the_next_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    checkpoints = Checkpoints(str(tmp_path / "file"), 2)
    checkpoints.save(1, {})
    with pytest.raises(OSError, match="file"):
        checkpoints.save(2, {})
