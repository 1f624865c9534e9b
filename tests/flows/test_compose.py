"""compose.yaml, and the commands of Prefect in the documents: each command is there and takes its arguments.

No container runs here. Where HCMI_TEST_POSTGRES has the address of an empty database (postgresql://USER:PASSWORD@HOST:
PORT/NAME), a slow test runs the services as processes on it, with the environment of the file and nothing else.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import psutil
import pytest
from flow_world import ROOT, Flows, free_port, wait_for
from prefect.cli._app import _app
from prefect.settings import Settings
from ruamel.yaml import YAML
from sqlalchemy import make_url
from test_pipeline import TINY, Copy, make_copy

from hcmi.cli import main

POSTGRES = os.environ.get("HCMI_TEST_POSTGRES")
COMPOSE = YAML(typ="safe").load((ROOT / "compose.yaml").read_text())
SERVICES = {name: service for name, service in COMPOSE["services"].items() if "command" in service}
PAGES = ("docs/operations.md", "docs/scheduling.md")


def commands(text: str) -> list[list[str]]:
    """What a shell runs of `a && b`, or of `sh -c "a && b"`."""
    words = shlex.split(text)
    if words[:2] == ["sh", "-c"]:
        words = shlex.split(words[2])
    found: list[list[str]] = [[]]
    for word in words:
        if word == "&&":
            found.append([])
        else:
            found[-1].append(word)
    return found


def assert_prefect_takes(words: list[str]) -> None:
    rest = [word for word in words if word != "--no-prompt"]        # an option of `prefect` itself
    _app.parse_args(rest, exit_on_error=False, print_error=False)


def written(page: str) -> list[str]:
    """The commands of Prefect in the code blocks of a page."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    lines = (line.strip() for block in blocks for line in block.splitlines())
    return [line for line in lines if re.match(r"(\w+=\S+ )*prefect ", line)]


@pytest.mark.parametrize("service", SERVICES)
def test_commands_of_a_service_are_there_and_take_their_arguments(service):
    for command in commands(SERVICES[service]["command"]):
        if command[0] == "prefect":
            assert_prefect_takes(command[1:])
        elif command[:3] == ["python", "-m", "hcmi"]:
            verb = main.commands[command[3]]
            verb.make_context(command[3], command[4:])
        elif command[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(command[2])
        else:
            assert service == "install"
            files = [ROOT / word for word in command if word.endswith((".lock", ".txt"))]
            assert all(file.is_file() for file in files)


def test_a_wrong_command_is_noticed():
    for words in ("worker start --pol local", "serverr start"):
        with pytest.raises(Exception, match="Unknown"):
            assert_prefect_takes(words.split())


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_prefect_in_the_documents_take_their_arguments(page):
    found = written(page)
    assert len(found) > 2
    for line in found:
        words = shlex.split(line.replace("SCHEDULE_ID", str(UUID(int=0))), comments=True)
        assert_prefect_takes(words[words.index("prefect") + 1:])


def test_services_have_what_their_settings_need():
    locked = (ROOT / "requirements.lock").read_text()
    assert re.search(r"^asyncpg==", locked, re.MULTILINE)       # of PREFECT_SERVER_DATABASE_DRIVER
    names = {name for service in COMPOSE["services"].values() for name in service.get("environment", {})
             if name.startswith("PREFECT_")}
    assert names == {"PREFECT_API_URL", "PREFECT_UI_API_URL", "PREFECT_SERVER_ANALYTICS_ENABLED",
                     "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE",
                     *(f"PREFECT_SERVER_DATABASE_{part}" for part in ("DRIVER", "HOST", "PORT", "NAME", "USER",
                                                                      "PASSWORD"))}
    assert names <= set(known_settings(Settings))


def test_the_address_of_the_database_is_right_whatever_the_password(monkeypatch):
    for name, value in COMPOSE["services"]["server"]["environment"].items():
        if name.startswith("PREFECT_SERVER_DATABASE_"):
            monkeypatch.setenv(name, value.replace("${POSTGRES_PASSWORD}", "p@ss%41/#:?"))
    url = make_url(str(Settings().server.database.connection_url.get_secret_value()))
    assert (url.drivername, url.username, url.password, url.host, url.port, url.database) == (
        "postgresql+asyncpg", "prefect", "p@ss%41/#:?", "database", 5432, "prefect")


def known_settings(model: type) -> list[str]:
    """The environment variables that Prefect reads."""
    found: list[str] = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and hasattr(inner, "model_config") and hasattr(inner, "model_fields"):
            found += known_settings(inner)
        choices = getattr(field.validation_alias, "choices", [])
        found += [str(choice).upper() for choice in choices]
        found.append(f"{model.model_config.get('env_prefix', '')}{name}".upper())
    return found


def test_every_named_service_and_volume_is_there():
    services, volumes = COMPOSE["services"], COMPOSE["volumes"]
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        mounted = {volume.partition(":")[0] for volume in service.get("volumes", [])} - {"."}
        assert mounted <= set(volumes)
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


class Services(Flows):
    """Services of compose.yaml as processes. Every process that they start has a mark in its environment."""

    def __init__(self, project: Path):
        self.project, self.port, self.page, self.process = project, free_port(), free_port(), psutil.Process()
        database = make_url(POSTGRES)
        home = project.with_name("home")
        home.mkdir(exist_ok=True)
        text = (project / "compose.yaml").read_text()
        for inside, here in [("4200", str(self.port)), ("8000", str(self.page)), ("/opt/venv/bin", str(Path(
                sys.executable).parent)), ("PYTHONPATH: /project", f"PYTHONPATH: {project}"),
                ("http://server:", "http://127.0.0.1:"), ("HOME: /tmp", f"HOME: {home}"),
                ("HOST: database", f"HOST: {database.host}"), ('"5432"', f'"{database.port or 5432}"'),
                ("DATABASE_NAME: prefect", f"DATABASE_NAME: {database.database}"),
                ("DATABASE_USER: prefect", f"DATABASE_USER: {database.username}"),
                ("PASSWORD: ${POSTGRES_PASSWORD}\n", f"PASSWORD: {json.dumps(database.password or '')}\n")]:
            assert inside in text
            text = text.replace(inside, here)
        self._services = YAML(typ="safe").load(text)["services"]
        self.started: list[subprocess.Popen] = []
        self._start("server", self._is_healthy)
        self._start("worker", lambda: "started!" in self.log("worker"))
        self._start("page", lambda: self.found("a red circle"))

    def _start(self, name: str, is_ready: Callable[[], object]) -> None:
        service = self._services[name]
        environment = {**service["environment"], "FLOWS_MARK": str(self.project)}
        with open(self.project / f"{name}.log", "w") as log:
            process = subprocess.Popen(shlex.split(service["command"]), cwd=self.project, env=environment, stdout=log,
                                       stderr=log, start_new_session=True)
        self.started.append(process)
        wait_for(lambda: process.poll() is not None or is_ready(), 600)
        assert process.poll() is None, self.log(name)

    def _is_healthy(self) -> bool:
        server = self._services["server"]
        return subprocess.run(server["healthcheck"]["test"][1:], env=server["environment"],
                              capture_output=True).returncode == 0

    def log(self, name: str) -> str:
        return (self.project / f"{name}.log").read_text("utf-8", "replace")

    def output(self) -> str:
        return self.log("worker")

    def found(self, query: str) -> set[str]:
        """The names of the files that the page answers; none while it does not answer."""
        address = f"http://127.0.0.1:{self.page}/api/search?q={urllib.request.quote(query)}&top=1000"
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                return {Path(hit["path"]).name for hit in json.load(answer)["hits"]}
        except urllib.error.URLError:
            return set()

    def kill(self) -> None:
        """As `docker kill` does: of a container that is killed no process is left."""
        for process in self.processes():
            process.kill()
        for process in self.started:
            process.wait(60)


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Copy:
    """A project in which a release is served."""
    copy = make_copy(tmp_path_factory.mktemp("compose") / "project", TINY)
    copy.repro(seconds=2000)
    copy.run("hcmi", "promote")
    return copy


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(POSTGRES is None, reason="HCMI_TEST_POSTGRES names no database")
def test_services_add_a_batch_and_go_on_after_all_were_killed_in_a_stage(served):
    project = served.folder
    inbox = project / "data/inbox"
    shutil.copytree(project / "data/incoming/scenes_same/videos", inbox)
    services = Services(project)
    try:
        run = services.trigger("ingest/ingest", inbox="data/inbox", quiet_seconds=1)
        assert services.end_of(run, 1200) == "COMPLETED", services.output()
        new = {path.name for path in inbox.iterdir()}
        wait_for(lambda: new <= services.found("a red circle"), 120)

        text = (project / "params.yaml").read_text()
        (project / "params.yaml").write_text(re.sub(r"(?m)^  epochs: 1\b", "  epochs: 30", text))
        cut_off = services.trigger("pipeline/retrain", then_promote=False)
        wait_for(lambda: any(task["state"]["type"] == "RUNNING" and task["tags"] == ["gpu"] for task in
                             services.ask("task_runs/filter", {"flow_runs": {"id": {"any_": [cut_off]}}})), 600)
        services.kill()
        (project / "params.yaml").write_text(text)
        services = Services(project)
        assert services.ask(f"flow_runs/{cut_off}")["state"]["type"] == "CRASHED"
        run = services.trigger("pipeline/retrain", then_promote=False)
        assert services.end_of(run, 1200) == "COMPLETED", services.output()
    finally:
        for process in services.started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(120)
        services.kill()
