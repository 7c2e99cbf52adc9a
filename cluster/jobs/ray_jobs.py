"""Jobs on a Ray cluster: submitted once under a stable id, followed, listed and stopped."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cluster.jobs.command_result import DONE, EXIT_CODES, FAILED, INTERRUPTED, JOB, PENDING, RUNNING
from pipeline.errors import RunError, UserError
from pipeline.storage import absolute, is_local
from pipeline.streaming.connection import quiet_console

if TYPE_CHECKING:
    from pipeline.recipe import Recipe
    from trainers.running.capacity import Node

TRAINING = ("pretrain", "finetune", "evaluate", "rounds", "transfer")
WRITING = ("render", "embed", "cluster", "label")
COMMANDS = (*WRITING, *TRAINING)
"""Commands that run as jobs: those that train a recipe's run, and those that write a folder."""

_STATUS = {"PENDING": PENDING, "RUNNING": RUNNING, "SUCCEEDED": DONE, "FAILED": FAILED, "STOPPED": INTERRUPTED}
"""Our word, as in `result.json`, for each of Ray's."""

ENDED = (DONE, FAILED, INTERRUPTED)
_OURS = "pseudolabel"
_CONNECT_SECONDS, _POLL_SECONDS, _STOP_SECONDS, _REDIALS = 5.0, 0.5, 120.0, 5
_DEFAULT = "http://127.0.0.1:8265"
"""The default URL of the job server that `ray start --head` starts."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_OVERRIDING = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_RACES, _MOST_NODES = 10, 10_000
_WATCH_SECONDS = 2.0
_PROGRESS = re.compile(
    r"^(?:pretrain|finetune|evaluate|rounds|transfer|rendering|embedding|clustering|labelling)[^:\n]*: (.*)$", re.MULTILINE
)
"""A line of progress, as `cluster.reports.progress` prints it where there is no terminal."""

_UNSCALED = re.compile(r"node_?[0-9A-Fa-f]{20,}")
"""The type that Ray's status gives to a node which no autoscaler has started: made of the node's id, in camel case."""
_PLACES = ("shards", "index", "mix", "annotations", "keep", "train", "test")
"""Keys of a recipe's sections that name shards, or tables beside them."""
_PLACES_OF_PARTS = ("shards", "table", "run", "weights", "train", "test")
"""Keys that are paths in what such a section holds by name."""


@dataclass(frozen=True)
class ClusterJob:
    """A job as the cluster describes it.

    Args:
        id: its name on the cluster.
        status: pending, running, done, failed or interrupted, as in `result.json`.
        command: what it does.
        started, ended: Unix time, seconds; None while it has not.
        exit_code: of its process, when it has ended.
        message: Ray's description of its status.
    """

    id: str
    status: str
    command: str
    started: float | None
    ended: float | None
    exit_code: int | None
    message: str

    @property
    def code(self) -> int:
        """The exit code to report for the job: its own, or 130 if it was stopped."""
        if self.status == FAILED and self.exit_code and self.exit_code > 0:
            return self.exit_code
        return EXIT_CODES.get(self.status, EXIT_CODES[FAILED])


class Jobs:
    """The jobs of one cluster.

    Args:
        address: URL of its job server; else what `RAY_API_SERVER_ADDRESS` or `RAY_ADDRESS` says, or the URL that Ray's job server
            has by default on this machine.

    Raises:
        UserError: no cluster answers, or it denies access.
    """

    def __init__(self, address: str | None = None) -> None:
        from ray.job_submission import JobSubmissionClient

        quiet_console()
        named = address or next(filter(None, map(os.environ.get, _OVERRIDING)), None)
        where = named or _DEFAULT
        with _only(where):
            self._client = _asked(lambda: JobSubmissionClient(where), where)
        self.url: str = self._client.get_address()
        self.guessed = named is None

    @property
    def here(self) -> bool:
        """Whether the cluster's head is on this machine, so that paths mean the same there."""
        return urlsplit(self.url).hostname in _LOOPBACK

    def nodes(self) -> list[Node] | None:
        """The resources of the cluster's nodes; None if an autoscaler may add nodes, or if that is unknown."""
        import requests
        from ray.util.state import list_nodes
        from ray.util.state.exception import RayStateApiException

        from trainers.running.capacity import Node

        try:
            status = self._client._do_request("GET", "/api/cluster_status").json()["data"]
            kinds = ((status.get("clusterStatus") or {}).get("autoscalerReport") or {}).get("activeNodes") or {}
            if not kinds or not all(_UNSCALED.fullmatch(kind) for kind in kinds):
                return None
            with _only(self.url):
                there = list_nodes(address=self.url, filters=[("state", "=", "ALIVE")], limit=_MOST_NODES)
        except (KeyError, requests.RequestException, RayStateApiException):
            return None
        held = [node.resources_total or {} for node in there]
        return [Node(one.get("CPU", 0.0), one.get("GPU", 0.0)) for one in held]

    def all(self) -> list[ClusterJob]:
        """Our jobs, the oldest first."""
        found = [_job(info) for info in self._client.list_jobs() if _OURS in (info.metadata or {}) and info.submission_id]
        return sorted(found, key=lambda job: job.started or 0)

    def find(self, name: str) -> ClusterJob:
        """A job by its id; of several attempts under one id, the newest.

        Raises:
            UserError: there is no such job.
        """
        found = self._attempts(name)
        if not found:
            raise UserError(f"no job {name} on this cluster; `pseudolabel list` shows those that there are")
        return found[-1]

    def submit(
        self, name: str, entrypoint: str, runtime_env: dict[str, Any], command: str, sending: Callable[[str], None]
    ) -> tuple[ClusterJob, bool]:
        """Start a job, unless one of this name is under way.

        A cluster accepts an id only once, so a job that runs again after its end is a new attempt, `<name>-2` and so on. Of two
        callers that ask for the same attempt at once, one starts it, and the other finds it under way.

        Args:
            name: of the job, an id that is the same each time.
            entrypoint: its command line.
            runtime_env: Ray's runtime environment for it.
            command: what it does, for `list`.
            sending: called with the id before the job is sent.

        Returns:
            The job, and whether it was started by this call.

        Raises:
            UserError: the cluster refuses it.
        """
        for _ in range(_RACES):
            attempts = self._attempts(name)
            if attempts and attempts[-1].status not in ENDED:
                return attempts[-1], False
            id = f"{name}-{len(attempts) + 1}" if attempts else name
            sending(id)
            variables = {**runtime_env.get("env_vars", {}), JOB: id}
            try:
                self._client.submit_job(
                    entrypoint=entrypoint,
                    runtime_env={**runtime_env, "env_vars": variables},
                    metadata={_OURS: command},
                    submission_id=id,
                )
            except (RuntimeError, ValueError) as error:  # ValueError: the files to ship are too large
                if len(self._attempts(name)) == len(attempts):
                    raise UserError(f"the cluster refuses the job: {error}") from error
                continue  # another caller was faster
            return self.find(id), True
        raise RunError(f"{name}: others keep submitting and ending the same job; `pseudolabel list` shows them")

    def follow(self, id: str, write: Callable[[str], None]) -> ClusterJob:
        """Write a job's log, from its beginning until the job ends.

        Raises:
            RunError: the cluster cannot be reached any more.
        """
        written = 0

        async def tail() -> None:
            nonlocal written
            place = 0
            async for text in self._client.tail_job_logs(id):
                fresh = text[max(0, written - place) :]  # after a lost connection the log comes from its beginning again
                place += len(text)
                if fresh:
                    write(fresh)
                written = max(written, place)

        for attempt in range(_REDIALS):
            try:
                asyncio.run(tail())
                return self._ended(id)
            except (RuntimeError, OSError) as error:
                if attempt == _REDIALS - 1:
                    raise RunError(
                        f"the cluster does not answer any more: {error}; `pseudolabel attach {id}` tries again"
                    ) from error
                time.sleep(2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def newest_words(self, id: str) -> str:
        """The newest line of progress that a job has printed, without the name of its command; empty if there is none yet.

        Raises:
            RunError: the cluster cannot be reached any more.
        """
        try:
            printed = self._client.get_job_logs(id)
        except (RuntimeError, OSError) as error:
            raise RunError(f"the cluster does not answer any more: {error}") from error
        found = _PROGRESS.findall(printed)
        return found[-1] if found else ""

    def states(self, id: str) -> Iterator[tuple[ClusterJob, str]]:
        """Yield a job and its newest line of progress, again and again until it has ended; errors as of `newest_words`."""
        while (job := self.find(id)).status not in ENDED:
            yield job, self.newest_words(id)
            time.sleep(_WATCH_SECONDS)
        yield job, self.newest_words(id)

    def stop(self, id: str) -> ClusterJob:
        """Stop a job and wait until it has ended.

        Raises:
            RunError: it does not end.
        """
        self._client.stop_job(id)
        return self._ended(id, _STOP_SECONDS)

    def _ended(self, id: str, seconds: float | None = None) -> ClusterJob:
        """Wait until a job has ended, which may be a moment after the end of its log, and return it."""
        end = None if seconds is None else time.monotonic() + seconds
        while (job := _job(self._client.get_job_info(id))).status not in ENDED:
            if end is not None and time.monotonic() > end:
                raise RunError(f"{id} is still {job.status}, {seconds:g} seconds after it was asked to stop")
            time.sleep(_POLL_SECONDS)
        return job

    def _attempts(self, name: str) -> list[ClusterJob]:
        """The jobs `name`, `name-2`, `name-3`, ..., in this order."""
        numbered = {}
        for job in self.all():
            rest = job.id.removeprefix(name)
            if job.id == name:
                numbered[1] = job
            elif rest != job.id and rest[:1] == "-" and rest[1:].isdigit():
                numbered[int(rest[1:])] = job
        return [numbered[number] for number in sorted(numbered)]


def workplace(command: str, recipe: Recipe, out: str | None) -> str:
    """A command and where its results go, in words: no two processes may do the same at once."""
    from trainers.running.runs import RunFolder

    return f"{command} into {absolute(out) if out else RunFolder(recipe).url}"


def stable_id(command: str, recipe: Recipe | None, out: str | None, options: Mapping[str, Any] | None = None) -> str:
    """The id of a run: equal for the same command on the same recipe with the same output, whatever its placement is.

    Args:
        command: its name.
        recipe: what it runs on; None for a command without a recipe, whose id begins with the name of its folder.
        out: the folder that it writes, for those that write one.
        options: what else is asked of it and changes what it writes.
    """
    from pipeline.materialize.job import shaping
    from trainers.running.runs import RunFolder

    if recipe is None:
        name, where, what = absolute(out or "").rstrip("/").rpartition("/")[2], f"{command} into {absolute(out or '')}", ""
    else:
        name, where = recipe.name, workplace(command, recipe, out)
        what = str(sorted(shaping(recipe).items())) if command in WRITING else RunFolder(recipe).identity(command)
        if command in ("embed", "label"):
            what += f" {recipe.training.backbone.architecture()} {RunFolder(recipe).url}"
    what += str(sorted(options.items())) if options else ""
    return f"{name}-{command}-{hashlib.sha256(f'{where} {what}'.encode()).hexdigest()[:8]}"


def settled_paths(recipe: Recipe, here: bool) -> dict[str, Any]:
    """The recipe's keys whose relative paths must be made absolute, since the job runs in a folder of its own.

    Args:
        recipe: the recipe.
        here: whether the cluster is on this machine.

    Returns:
        The new values, for `--set`.

    Raises:
        UserError: a relative path, and the cluster is elsewhere.
    """
    document = recipe.model_dump(mode="json")
    given: dict[str, Any] = {}
    for section in ("corpus", "downstream"):
        given |= {f"{section}.{key}": value for key, value in (document[section] or {}).items() if key in _PLACES}
    given["storage.runs"] = document["storage"]["runs"]
    if recipe.rounds is not None and recipe.rounds.run is not None:
        given["rounds.run"] = recipe.rounds.run
    if recipe.transfer is not None:
        given |= {f"transfer.{key}": document["transfer"][key] for key in ("starts", "datasets")}
    given["training.backbone.weights"] = document["training"]["backbone"].get("weights")
    moved = {key: _absolute(value) for key, value in given.items()}
    changed = {key: value for key, value in moved.items() if value != given[key]}
    if changed and not here:
        key = next(iter(changed))
        raise UserError(
            f"{key} is {given[key]}, a path relative to this folder, and the cluster is elsewhere: "
            "give a URL (s3://, gs://), or the absolute path of a disk that all its nodes share"
        )
    return changed


def _absolute(value: Any) -> Any:
    if isinstance(value, str):
        return absolute(value) if is_local(value) and not value.startswith("/") else value
    if isinstance(value, list):
        return [_absolute(inner) for inner in value]
    if isinstance(value, dict):  # of parts by name, or itself a part
        return {
            key: _absolute(part) if key in _PLACES_OF_PARTS or isinstance(part, dict) else part for key, part in value.items()
        }
    return value


@contextmanager
def _only(address: str) -> Iterator[None]:
    """Let a given address take precedence over the environment's; in Ray it is the other way round."""
    held = {name: os.environ.pop(name) for name in _OVERRIDING if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)


def _asked(call: Callable[[], Any], where: str) -> Any:
    from ray.exceptions import AuthenticationError, RpcError

    try:
        host, _, port = where.rpartition(":")
        if "://" not in where and host and port.isdigit():  # Ray itself tries for a minute
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        return call()
    except AuthenticationError as error:
        raise UserError(
            f"{where}: the cluster requires a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or put it into "
            f"~/.ray/auth_token ({str(error).splitlines()[0]})"
        ) from error
    except (OSError, RuntimeError, ValueError, OverflowError, RpcError) as error:
        words = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"no job server of a Ray cluster answers at {where}: {words}. Name it with --address, or start one with "
            "`ray start --head`"
        ) from error


def _job(info: Any) -> ClusterJob:
    return ClusterJob(
        id=info.submission_id,
        status=_STATUS[str(info.status)],
        command=(info.metadata or {}).get(_OURS, ""),
        started=info.start_time and info.start_time / 1000,
        ended=info.end_time and info.end_time / 1000,
        exit_code=info.driver_exit_code,
        message=" ".join((info.message or "").split()),
    )
