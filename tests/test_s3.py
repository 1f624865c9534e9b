"""Data and releases through an S3-compatible server on this machine: the extra `s3-test` brings it."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from subprocess import CalledProcessError

import pytest
from model_world import write_film
from test_clone import clone, commit, files, make_batch
from test_pipeline import STAGES, TINY, Copy, make_copy

from hcmi.errors import DataError
from hcmi.incoming import collect

moto = pytest.importorskip("moto.server", reason="pip install 'hcmi[s3-test]'")
pytest.importorskip("dvc_s3", reason="pip install 'hcmi[s3-test]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
BUCKET = "bucket"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server with an empty bucket, which the environment names."""
    import boto3

    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    _, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"AWS_ACCESS_KEY_ID": "team", "AWS_SECRET_ACCESS_KEY": "secret",
                            "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "2",
                            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield f"http://127.0.0.1:{port}"
    running.stop()


def on_s3(folder: Path, changes: dict[str, object], server: str) -> Copy:
    """A copy of this checkout whose data goes to the bucket."""
    copy = make_copy(folder, changes)
    packages = os.pathsep.join(filter(None, [copy.environment["PYTHONPATH"], os.environ.get("PYTHONPATH", "")]))
    copy = replace(copy, environment={**copy.environment, "PYTHONPATH": packages})
    copy.run("dvc", "remote", "add", "-d", "store", f"s3://{BUCKET}/{folder.name}")
    copy.run("dvc", "remote", "modify", "store", "endpointurl", server)
    return copy


def colleague_of(team: Copy, folder: Path) -> Copy:
    packages = team.environment["PYTHONPATH"].replace(str(team.folder), str(folder), 1)
    there = clone(team, folder)
    return replace(there, environment={**there.environment, "PYTHONPATH": packages})


def test_new_videos_of_a_bucket_become_a_batch(server, tmp_path):
    import boto3

    s3 = boto3.client("s3")
    for colour in ("red", "blue"):
        film = write_film(tmp_path / f"{colour}.mp4", [colour, "black"], frames_each=4)
        s3.upload_file(str(film), BUCKET, f"new/videos/{colour}.mp4")
    s3.put_object(Bucket=BUCKET, Key="new/captions.csv", Body=b"video,caption\nred.mp4,a red film\n")
    address = f"s3://{BUCKET}/new"
    found = collect(address, tmp_path / "incoming", "monday", 60, 20.0, wait=pytest.fail)
    assert (found.batch, found.files) == ("monday", ["blue.mp4", "red.mp4"])
    assert (tmp_path / "incoming/monday/videos/red.mp4").read_bytes() == (tmp_path / "red.mp4").read_bytes()
    assert collect(address, tmp_path / "incoming", "monday", 60, 20.0, wait=pytest.fail).batch is None


@pytest.mark.parametrize(("variable", "value"), [("AWS_ENDPOINT_URL", "http://127.0.0.1:9"), (None, None)])
def test_a_bucket_that_does_not_answer_or_is_not_there_is_said_in_one_line(server, tmp_path, monkeypatch, variable,
                                                                           value):
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    if variable:
        monkeypatch.setenv(variable, value)
    with pytest.raises(DataError, match=r"^s3://nonesuch/new: need a bucket that can be read, got: .*") as failure:
        collect("s3://nonesuch/new", tmp_path / "incoming", "monday", 0, 20.0)
    assert "\n" not in str(failure.value)
    s3fs.S3FileSystem.clear_instance_cache()


def test_batches_are_pushed_and_pulled_and_nothing_is_lost_when_the_remote_is_away(server, tmp_path):
    team = on_s3(tmp_path / "team", {}, server)
    for name in ("hcmi", "flows", "tests", "docs", "benchmarks"):
        shutil.rmtree(team.folder / name)
    (team.folder / "dvc.yaml").write_text("stages: {}\n")
    make_batch(team.folder / "data/incoming/monday")
    wanted = files(team.folder / "data/incoming/monday")
    team.run("dvc", "add", "data/incoming/monday")
    team.run("dvc", "remote", "modify", "--local", "store", "endpointurl", "http://127.0.0.1:9")
    with pytest.raises((AssertionError, CalledProcessError)):
        team.run("dvc", "push", "-q")
    assert files(team.folder / "data/incoming/monday") == wanted
    team.run("dvc", "remote", "modify", "--local", "store", "endpointurl", server)
    team.run("dvc", "push", "-q")
    commit(team, "monday")
    colleague = colleague_of(team, tmp_path / "colleague")
    colleague.run("dvc", "pull", "-q")
    assert files(colleague.folder / "data/incoming/monday") == wanted


def test_a_release_is_pushed_and_served_from_another_clone(server, tmp_path):
    team = on_s3(tmp_path / "team", TINY, server)
    assert team.repro(seconds=1200) == STAGES
    commit(team, "first run")
    first = json.loads(team.run("hcmi", "promote", "--json").stdout)
    assert first["tags"].startswith("git tags model@v1.0.0, index@v1.0.0."), first
    team.run("dvc", "push", "-q")
    colleague = colleague_of(team, tmp_path / "colleague")
    colleague.run("git", "checkout", "-q", "model@v1.0.0")
    colleague.run("dvc", "pull", "-q")
    assert colleague.repro() == []
    assert json.loads(colleague.run("hcmi", "promote", "--json").stdout)["decision"] == "promoted"
    keys = [json.loads((copy.folder / "releases/current/release.json").read_text())["key"]
            for copy in (team, colleague)]
    assert keys[0] == keys[1]
    assert json.loads(colleague.run("hcmi", "search", "a red circle", "--json").stdout)
    team.run("dvc", "artifacts", "get", str(team.folder), "model", "--stage", "served", "-o", str(tmp_path / "model"))
    released = files(team.folder / "releases/v1/model")
    assert released.pop("README.md")            # the card is made with the release
    assert files(tmp_path / "model") == released
    served = files(team.folder / "releases/v1")
    team.run("dvc", "gc", "-w", "-f")           # a release is no output of DVC
    assert files(team.folder / "releases/v1") == served
