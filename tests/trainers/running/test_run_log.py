"""The run log holds unread lines and says where a run resumes; a listener that fails costs no other listener a line."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from trainers.running.run_log import RunLog, TolerantListener


def line(step: int) -> dict[str, Any]:
    return {"step": step}


def test_lines_that_were_read_are_held_no_more_and_lines_written_again_are_read_once() -> None:
    run_log, read, last = RunLog(), [], -1
    for step in [*range(1, 40), *range(30, 100)]:  # a worker was lost after step 39, and the checkpoint was of step 29
        run_log.log(line(step))
        if step % 7 == 0:
            new = run_log.since(last)
            read += [record["step"] for record in new]
            last = read[-1]
            assert len(new) <= 14
            assert len(run_log.since(last)) == 0
    assert read == list(range(1, 99))


def test_a_run_that_goes_on_says_from_which_step_and_checkpoint_and_one_that_begins_says_nothing() -> None:
    fresh, resumed = RunLog(), RunLog()
    fresh.begin(0, 1, 1)
    assert fresh.events() == []
    resumed.begin(30, 2, 1, " of 48 (checkpoint step-30.pt)")
    (event,) = resumed.events()
    assert event == {"what": "training goes on from step 30 of 48 (checkpoint step-30.pt)", "step": 30, "workers": 2}
    resumed.worker_lost("worker 0 was lost (killed)")
    resumed.begin(40, 1, 1, " of 48 (checkpoint step-40.pt)")
    assert resumed.events(1)[0]["what"] == (
        "worker 0 was lost (killed); training goes on from step 40 of 48 (checkpoint step-40.pt) with 1 worker"
    )


def test_a_data_actor_that_takes_the_place_of_another_is_an_event_of_the_last_step_also_when_all_lines_are_read() -> None:
    run_log = RunLog()
    run_log.begin(0, 1, 1)
    run_log.report("a", "start", -1)
    run_log.log(line(5))
    run_log.since(5)
    run_log.report("b", "start", -1)
    (event,) = run_log.events()
    assert (event["step"], "b took its place" in event["what"]) == (5, True)


def test_a_listener_that_fails_is_warned_of_once_given_the_next_line_and_counted_at_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[int] = []

    def take(record: dict[str, Any]) -> None:
        if record["step"] in (2, 3, 5):
            raise ConnectionError("http://user:secret@tracker/api\nis away")
        heard.append(record["step"])

    listener = TolerantListener("MLflow", take)
    for step in range(1, 7):
        listener(line(step))
    listener.close()
    assert heard == [1, 4, 6]
    first, last = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert first == "MLflow misses log lines, the run goes on without them: ConnectionError: http://tracker/api is away"
    assert last == "MLflow has missed 3 of 6 log lines"


def test_a_listener_that_takes_long_to_fail_holds_up_others_for_a_tenth_of_the_time_at_most() -> None:
    clock, tries = [0.0], []

    def take(record: dict[str, Any]) -> None:
        tries.append(record["step"])
        clock[0] += 30
        raise TimeoutError

    listener = TolerantListener("slow", take, lambda: clock[0])
    for step in range(1, 3601):
        clock[0] = max(clock[0], float(step))
        listener(line(step))
    assert 30 * len(tries) < 3601 / 10
    assert len(tries) > 5
