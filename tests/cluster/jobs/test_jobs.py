"""Jobs on a real Ray cluster with a token are submitted, followed, detached from, submitted again, stopped, resumed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml

from cluster.cli import app
from cluster.commands.jobs import _package, _parsed, _shaping
from cluster.jobs.ray_jobs import ClusterJob, settled_paths, stable_id
from pipeline.errors import UserError
from pipeline.recipe import Recipe, load_recipe
from tests.cluster.conftest import Call
from tests.cluster.jobs.ray_head import TOKEN, WAIT_SECONDS, Head, free_port
from tests.trainers.labelling.conftest import embedded, random_weights
from tests.web import Serve
from trainers.downstream.classifier import Classifier

__all__ = ["embedded"]

pytestmark = pytest.mark.xdist_group("jobs")  # one head for all

STEPS = 64


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    started = Head(tmp_path_factory.mktemp("head") / "head.log")
    yield started
    started.close()


@pytest.fixture
def workshop(tiles: Path, tmp_path: Path) -> Path:
    """A folder as a user has it: recipe and shards, with relative paths, a secret, something large, and code named as ours is."""
    shutil.copytree(tiles, tmp_path / "shards")
    document = {
        "name": "job",
        "seed": 3,
        "corpus": {"shards": "shards"},
        "image": {"size": 32},
        "tasks": {"rotation": {}},
        "placement": {"cpus": 0.5},
        "training": {
            "backbone": {"name": "resnet10", "stem": "standard"},
            "batch": 16,
            "epochs": STEPS // 4,
            "log_steps": 1,
            "order": {"window": 2, "groups": 4},
            "workers": 0,
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    (tmp_path / ".env").write_text("PASSWORD=hunter2")
    (tmp_path / "pipeline.py").write_text('raise SystemExit("yours")')
    return tmp_path


@contextmanager
def growing(log: Path) -> Iterator[None]:
    """Keep writing to a log while the block runs."""
    over = threading.Event()

    def write() -> None:
        with log.open("a") as file:
            while not over.is_set():
                file.write("a line\n" * 100)
                file.flush()
                over.wait(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    yield
    over.set()
    writer.join()


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")] if log.exists() else []


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["in short", "whole"])
def test_a_job_is_submitted_followed_left_alone_submitted_again_stopped_and_resumed(
    head: Head, workshop: Path, serve: Serve, whole: bool
) -> None:
    """Storage is blocked while the job is examined, so that it cannot finish earlier, however fast the machine is."""

    def call(*words: Any, **environment: str) -> subprocess.CompletedProcess[str]:
        return head.call(*words, cwd=workshop, **environment)

    flowing = threading.Event()
    url = serve(workshop / "shards", ranges=False, flowing=flowing)
    document = yaml.safe_load((workshop / "recipe.yaml").read_text())
    document["corpus"]["shards"] = [f"{url}/{shard.name}" for shard in sorted((workshop / "shards").glob("*.tar"))]
    (workshop / "recipe.yaml").write_text(yaml.safe_dump(document))
    words = ("submit", "--", "pretrain", "recipe.yaml")
    if whole:
        stranger = call(*words, RAY_AUTH_TOKEN="another-token-0123456789-0123456789")
        assert stranger.returncode == 2, stranger
        assert "token" in stranger.stderr
        assert TOKEN not in stranger.stdout + stranger.stderr

    log, result = workshop / "runs/job/pretrain.jsonl", workshop / "runs/job/pretrain.result.json"
    result.parent.mkdir(parents=True)
    result.write_text('{"status": "failed"}')  # of an attempt before
    with growing(workshop / "other.log"):
        submitted = call("submit", "--no-wait", "--", "pretrain", "recipe.yaml")
    assert submitted.returncode == 0, submitted
    assert "INFO" not in submitted.stderr, "lines of Ray's own"
    id = submitted.stdout.strip()
    attempt = json.loads(result.read_text())
    assert (attempt["status"] in ("pending", "running"), attempt["job"]) == (True, id)
    end = time.monotonic() + WAIT_SECONDS
    while len(lines(log)) < 10:
        assert time.monotonic() < end, head.logs()
        assert head.alive, head.logs()
        time.sleep(0.1)
    flowing.clear()

    again = head.start(*words, cwd=workshop)
    assert again.stderr is not None
    assert again.stderr.readline() == f"job {id} is under way already\n"
    assert again.stdout is not None
    again.stdout.readline()  # of the job's log
    again.send_signal(signal.SIGINT)
    _, said = again.communicate(timeout=WAIT_SECONDS)
    assert again.returncode == 130
    assert f"the job goes on; `pseudolabel attach {id}`" in said
    assert json.loads(call("status", id, "--json").stdout)["status"] == "running"

    if whole:  # past the job server, and on the same shards where they can be read
        twice = call("pretrain", "recipe.yaml", "--set", "corpus.shards=shards", RAY_ADDRESS=head.address)
        assert (twice.returncode, "is under way on this cluster already" in twice.stderr) == (2, True), twice
    assert json.loads(result.read_text())["status"] == "running"

    stopped = call("stop", id)
    assert (stopped.returncode, stopped.stdout) == (0, f"job {id}: interrupted\n"), stopped
    assert lines(log)[-1]["step"] < STEPS
    flowing.set()

    resumed = call(*words)
    assert resumed.returncode == 0, resumed
    assert f"job {id}-2 submitted" in resumed.stderr
    assert "report: " in resumed.stdout
    goes_on = re.search(rf"training goes on from step (\d+) of {STEPS} \(checkpoint step-", resumed.stdout)
    assert goes_on, resumed.stdout  # not from the beginning
    steps = [line["step"] for line in lines(log)]
    assert steps == sorted(set(steps))  # each line once
    assert steps[0] == 1  # those of the first attempt are still there
    assert steps[-(STEPS - int(goes_on[1])) :] == list(range(int(goes_on[1]) + 1, STEPS + 1))
    found = json.loads(result.read_text())
    assert (found["status"], found["job"], found["counts"]["steps"]) == ("done", f"{id}-2", STEPS)
    assert all(Path(url).exists() for url in found["artefacts"].values())

    watched = call("status", f"{id}-2", "--watch")
    assert (watched.returncode, f"step {STEPS} of {STEPS}" in watched.stdout) == (0, True), watched
    assert f"{id}-2 done: step {STEPS} of {STEPS}" in watched.stderr

    if whole:
        attached = call("attach", id)  # of several attempts the newest
        assert (attached.returncode, attached.stdout) == (0, resumed.stdout)
        there = [(job["id"], job["status"]) for job in json.loads(call("list", "--json").stdout)]
        assert there == [(id, "interrupted"), (f"{id}-2", "done")]
    shipped = {path.name for path in head.folder.rglob("working_dir_files/*/*")}
    assert {"recipe.yaml", "pipeline.py"} <= shipped
    assert shipped.isdisjoint({".env", "runs"})


@pytest.mark.parametrize(
    ("status", "exit_code", "code"),
    [("done", 0, 0), ("failed", 2, 2), ("failed", None, 1), ("failed", -9, 1), ("interrupted", None, 130)],
)
def test_following_a_job_ends_with_its_commands_code(status: str, exit_code: int | None, code: int) -> None:
    assert ClusterJob("a", status, "pretrain", 0.0, 1.0, exit_code, "").code == code


@pytest.mark.slow
def test_a_job_ends_as_its_command_ends(head: Head, workshop: Path) -> None:
    """In failure; the job that is resumed above ends well."""
    refused = head.call("submit", "--", "evaluate", "recipe.yaml", cwd=workshop)
    assert refused.returncode == 2, refused
    assert "no `downstream` section" in refused.stdout
    assert "failed" in refused.stderr


@pytest.mark.slow
def test_a_render_is_a_job_too_ships_nothing_if_told_so_and_takes_named_variables(head: Head, workshop: Path) -> None:
    rendered = head.call(
        "submit", "--no-ship", "--env", "PSEUDOLABEL_DEBUG", "--", "render", "recipe.yaml", "--out", "pairs",
        cwd=workshop, PSEUDOLABEL_DEBUG="1", UNNAMED="1",
    )  # fmt: skip
    assert rendered.returncode == 0, rendered
    assert json.loads((workshop / "pairs.render.result.json").read_text())["counts"]["pairs"] == 72


@pytest.mark.slow
def test_rounds_are_a_job_too_and_say_which_one_it_is(head: Head, workshop: Path) -> None:
    recipe = yaml.safe_load((workshop / "recipe.yaml").read_text())
    recipe |= {"tasks": {}, "name": "turns", "rounds": {"method": "deepcluster", "clusters": 6, "count": 2, "layer": "layer2"}}
    (workshop / "rounds.yaml").write_text(yaml.safe_dump(recipe))
    done = head.call("submit", "--", "rounds", "rounds.yaml", "--set", "training.epochs=1", cwd=workshop)
    assert done.returncode == 0, done
    assert "rounds: round 2 of 2, embedding: " in done.stdout
    assert "as before" in done.stdout


@pytest.mark.slow
def test_features_are_a_job_that_resumes_and_tells_how_far_it_is(head: Head, workshop: Path) -> None:
    random_weights(load_recipe(workshop / "recipe.yaml"), workshop)
    words = ("submit", "--", "embed", "recipe.yaml", "--out", "features", "--weights", "weights.pt", "--layer", "layer3")
    done = head.call(*words, cwd=workshop)
    assert done.returncode == 0, done
    assert "8 of 8, 8 by this run" in done.stdout
    id = re.search(r"job (job-embed-\w+) submitted", done.stderr)
    assert id, done.stderr
    left = json.loads((workshop / "features.embed.result.json").read_text())
    assert (left["status"], left["job"], left["counts"]["features"]) == ("done", id[1], 72)
    assert "8 of 8 shards, 72 of 72 samples" in head.call("status", id[1]).stdout


@pytest.mark.slow
def test_clusters_and_labels_are_jobs_and_fail_as_their_commands_fail(head: Head, workshop: Path, embedded: Path) -> None:
    clustered = head.call(
        "submit", "--no-ship", "--", "cluster", embedded, "--k", "4", "--plain", "--out", "clusters", cwd=workshop
    )  # fmt: skip
    assert clustered.returncode == 0, clustered
    assert re.search(r"job clusters-cluster-\w+ submitted", clustered.stderr), clustered.stderr
    assert json.loads((workshop / "clusters.cluster.result.json").read_text())["counts"]["clusters"] == 4
    unlabelled = head.call("submit", "--", "label", "recipe.yaml", "--out", "labels", "--top", "2", cwd=workshop)
    assert unlabelled.returncode == 2, unlabelled
    assert "no classifier at" in unlabelled.stdout
    recipe = load_recipe(workshop / "recipe.yaml")
    state = {"classifier": Classifier(recipe, 3, None).state_dict(), "classes": ["cat", "coffee", "rocket"]}
    (workshop / "runs/job").mkdir(parents=True)
    torch.save({**state, "spec": recipe.training.backbone.architecture()}, workshop / "runs/job/classifier.pt")
    labelled = head.call("submit", "--", "label", "recipe.yaml", "--out", "labels", "--top", "2", cwd=workshop)
    assert labelled.returncode == 0, labelled
    assert f"{labelled.stderr.split()[1]}".endswith("-2"), "another attempt of the same job"
    assert json.loads((workshop / "labels.label.result.json").read_text())["counts"]["labels"] == 72


def sent(*words: str, here: bool = True) -> tuple[list[str], str]:
    """The command line of a job, without its program, and the job's id."""
    group = typer.main.get_command(app)
    whole = group.make_context("pseudolabel", ["submit"])
    command, parsed = _parsed(typer.Context(group.get_command(whole, "submit"), parent=whole), list(words))
    given = parsed.params
    recipe = load_recipe(given["recipe"], given["overrides"] or []) if "recipe" in given else None
    _, line = _package(command, parsed, recipe, here, ship=True)
    return shlex.split(line)[1:], stable_id(command, recipe, given.get("out"), _shaping(given))


def test_a_job_gets_every_argument_of_its_command_with_absolute_paths(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)
    settled = ["--set", f'corpus.shards="{workshop}/shards"', "--set", f'storage.runs="{workshop}/runs"']
    embed, id = sent("embed", "recipe.yaml", "-o", "f", "--weights", "w.pt", "--dtype", "float32", "--retry-failed")
    paths = ["--out", f"{workshop}/f", "--weights", f"{workshop}/w.pt"]
    assert embed == ["embed", "recipe.yaml", *paths, "--dtype", "float32", "--retry-failed", *settled]
    assert id.startswith("job-embed-")
    assert id == sent("embed", "recipe.yaml", "-o", f"{workshop}/f", "--weights", "w.pt", "--dtype", "float32")[1]
    assert id != sent("embed", "recipe.yaml", "-o", "f", "--weights", "w.pt")[1]
    network = ("--set", "training.backbone.name=resnet18")
    assert id != sent("embed", "recipe.yaml", "-o", "f", "--weights", "w.pt", "--dtype", "float32", *network)[1]
    label, id = sent("label", "recipe.yaml", "--out", "s3://a/l", "--run", "runs/job", "--top", "3", "--json")
    assert label[:8] == ["label", "recipe.yaml", "--out", "s3://a/l", "--run", f"{workshop}/runs/job", "--top", "3"]
    assert id.startswith("job-label-")
    cluster, id = sent("cluster", "f", "--k", "9", "--k", "4", "--out", "my/groups", "--plain", "--duplicates", "0.9")
    assert cluster == [
        "cluster", f"{workshop}/f", "--k", "9", "--k", "4", "--out", f"{workshop}/my/groups", "--plain", "--duplicates", "0.9",
    ]  # fmt: skip
    assert id.startswith("groups-cluster-")
    assert id != sent("cluster", "f", "--k", "8", "--out", "my/groups", "--plain", "--duplicates", "0.9")[1]
    transfer, id = sent("transfer", "recipe.yaml", "--set", 'transfer={"starts": {"a": {}, "b": {"run": "runs/b"}}, '
                        '"datasets": {"photos": {"train": "shards", "test": "s3://a/test"}}}')  # fmt: skip
    asked = [transfer[n + 1] for n, word in enumerate(transfer) if word == "--set" and n > 2]
    starts, datasets = (json.loads(next(one for one in asked if one.startswith(key)).partition("=")[2])
                        for key in ("transfer.starts=", "transfer.datasets="))  # fmt: skip
    assert starts == {"a": {"run": None, "weights": None}, "b": {"run": f"{workshop}/runs/b", "weights": None}}
    assert (datasets["photos"]["train"], datasets["photos"]["test"]) == (f"{workshop}/shards", "s3://a/test")
    assert id.startswith("job-transfer-")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("embed", "recipe.yaml", "--out", "f"), "--out f is a path relative to this folder, and the cluster is elsewhere"),
        (("embed", "recipe.yaml", "--out", "s3://a/f", "--weights", "w.pt"), "--weights w.pt is a path relative to"),
        (("label", "recipe.yaml", "--out", "s3://a/l", "--run", "runs/x"), "--run runs/x is a path relative to"),
        (("cluster", "features", "-k", "3", "--out", "s3://a/c"), "FEATURES features is a path relative to"),
        (("cluster", "https://me:hunter2@host/f", "-k", "3", "--out", "s3://a/c"), "cluster https://.*: a URL with a password"),
        (("label", "recipe.yaml", "--out", "s3://a/l"), "corpus.shards is shards, a path relative to this folder"),
    ],
)
def test_what_a_cluster_elsewhere_cannot_read_is_refused(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], problem: str
) -> None:
    monkeypatch.chdir(workshop)
    with pytest.raises(UserError, match=problem):
        sent(*words, here=False)


def test_mistakes_are_refused_before_anything_is_sent(
    call: Call, refused: Callable[..., str], workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(*words: str) -> str:
        return refused(2, "submit", *words)

    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{free_port()}")
    monkeypatch.chdir(workshop)
    assert "did you mean 'pretrain'?" in error("--", "pretain", "recipe.yaml")
    assert "No such option" in call("submit", "--", "pretrain", "recipe.yaml", "--sett", "a=1").stderr
    assert "did you mean 'epochs'?" in error("--", "pretrain", "recipe.yaml", "--set", "training.epohcs=1")
    assert "verify is no job of a cluster: run it without submit; jobs are" in error("--", "verify", "pairs")
    assert "--dry-run is no job" in error("--", "pretrain", "recipe.yaml", "--dry-run")
    assert "no such variable" in error("--env", "NOT_THERE_AT_ALL", "--", "pretrain", "recipe.yaml")
    assert "no job server of a Ray cluster answers at http://127.0.0.1" in refused(2, "list")
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    assert "no job server of a Ray cluster answers at 127.0.0.1" in refused(2, "list")


def test_what_may_not_or_cannot_be_sent_is_not_sent(head: Head, workshop: Path, tmp_path: Path) -> None:
    secret = "corpus.shards=https://me:hunter2@host/a.tar"
    done = head.call("submit", "--", "pretrain", "recipe.yaml", "--set", secret, cwd=workshop)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert "secrets" in done.stderr
    assert "hunter2" not in done.stderr
    (tmp_path / "elsewhere").mkdir()
    outside = head.call("submit", "--", "pretrain", "../recipe.yaml", cwd=tmp_path / "elsewhere")
    assert "is outside the folder that is shipped" in outside.stderr
    assert "no job nothing on this cluster" in head.call("status", "nothing").stderr

    before = head.call("list", "--json").stdout
    vast = head.call("submit", "--", "pretrain", "recipe.yaml", "--set", "placement.actors=50", cwd=workshop)
    assert (vast.returncode, vast.stdout) == (2, ""), vast
    assert "the cluster has 6: lower" in vast.stderr
    assert head.call("list", "--json").stdout == before


def test_a_cluster_that_nobody_named_is_said(head: Head) -> None:
    code = f"import sys, cluster.jobs.ray_jobs as jobs; jobs._DEFAULT = {head.url!r}; from cluster.cli import main; main()"
    call = [sys.executable, "-c", code, "list", "--json"]
    done = subprocess.run(call, env=head.environment, capture_output=True, text=True, check=True)
    json.loads(done.stdout)
    assert done.stderr == (
        f"cluster: {head.url}, Ray's default address on this machine; --address or RAY_API_SERVER_ADDRESS names another one\n"
    )


MakeRecipe = Callable[..., Recipe]


def test_the_id_follows_from_the_run_and_not_from_its_circumstances(run_recipe: MakeRecipe, tmp_path: Path) -> None:
    plain = stable_id("pretrain", run_recipe(), None)
    assert plain.startswith("run-pretrain-")
    assert plain == stable_id("pretrain", run_recipe(workers=2, cpus=0.5), None)
    assert plain == stable_id("pretrain", run_recipe({"placement": {"actors": 7}}), None)
    others = [
        stable_id("pretrain", run_recipe(epochs=4), None),
        stable_id("pretrain", run_recipe({"seed": 4}), None),
        stable_id("pretrain", run_recipe({"storage": {"runs": str(tmp_path / "elsewhere")}}), None),
        stable_id("finetune", run_recipe(), None),
        stable_id("render", run_recipe(), str(tmp_path / "a")),
        stable_id("render", run_recipe(), str(tmp_path / "b")),
    ]
    assert len({plain, *others}) == 7


def test_relative_paths_become_absolute_here_and_are_refused_elsewhere(
    run_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    corpus = {"shards": ["a/{0..3}.tar", "s3://b/c", "/d"], "keep": {"table": "clusters", "most": {"distance": 0.5}}}
    mixed = run_recipe({"corpus": corpus, "storage": {"runs": "runs"}}, backbone={"name": "resnet18", "weights": "w.pt"})
    assert settled_paths(mixed, here=True) == {
        "corpus.shards": [f"{tmp_path}/a/{{0..3}}.tar", "s3://b/c", "/d"],
        "corpus.keep": {"table": f"{tmp_path}/clusters", "least": {}, "most": {"distance": 0.5}},
        "training.backbone.weights": f"{tmp_path}/w.pt",
        "storage.runs": f"{tmp_path}/runs",
    }
    with pytest.raises(UserError, match=r"corpus.shards is .*relative to this folder.*the cluster is elsewhere"):
        settled_paths(mixed, here=False)
    assert settled_paths(run_recipe(), here=False) == {}
