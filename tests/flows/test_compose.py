"""compose.yaml, and the commands of Prefect in the documents: each command is there and takes its arguments.

No container runs here: the file has been held against the schema of the Compose specification by hand.
"""

import re
import shlex
from uuid import UUID

import pytest
from flow_world import ROOT
from prefect.cli._app import _app
from prefect.settings import Settings
from ruamel.yaml import YAML

from hcmi.cli import main

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
    assert re.search(r"^asyncpg==", locked, re.MULTILINE)       # of PREFECT_API_DATABASE_CONNECTION_URL
    names = {name for service in COMPOSE["services"].values() for name in service.get("environment", {})
             if name.startswith("PREFECT_")}
    assert names == {"PREFECT_API_URL", "PREFECT_UI_API_URL", "PREFECT_SERVER_ANALYTICS_ENABLED",
                     "PREFECT_API_DATABASE_CONNECTION_URL"}
    assert names <= set(known_settings(Settings))


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
