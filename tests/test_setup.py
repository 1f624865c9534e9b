"""Set-up in one command: the lock holds what is tested, and make installs exactly when it must."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version

import pytest
from import_graph import ROOT
from packaging.requirements import Requirement

LOCK = [Requirement(line) for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines()
        if line and not line.startswith("#")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
# Few need these extras, which would triple the download. torchvision, which open_clip brings, must fit the torch build.
NOT_LOCKED = {"open_clip", "mteb", "s3", "s3-test", "shots"}
DEPENDENCIES = sum((lines for extra, lines in PROJECT["optional-dependencies"].items() if extra not in NOT_LOCKED),
                   PROJECT["dependencies"])


@pytest.fixture
def checkout(tmp_path):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def planned(checkout, target: str = "test") -> str:
    """What make would do, without doing it."""
    outer = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    return subprocess.run(["make", "-n", target, f"PYTHON={sys.executable}"], cwd=checkout, check=True, text=True,
                          capture_output=True, env=outer).stdout


def stamp(checkout):
    path = checkout / re.search(r"touch (\S+)", planned(checkout)).group(1)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    return path


def test_lock_pins_every_package_exactly_and_names_no_place():
    for requirement in LOCK:
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), f"{requirement}: no exact public version"
        assert requirement.url is None
    assert not re.search(r"://|^-", (ROOT / "requirements.lock").read_text("utf-8"), re.MULTILINE)


def test_lock_is_what_the_tests_run_with():
    wrong = {str(line): version(line.name) for line in LOCK
             if (line.marker is None or line.marker.evaluate())
             and not line.specifier.contains(version(line.name).partition("+")[0], prereleases=True)}
    assert wrong == {}, "run make: .venv is not what requirements.lock says"


@pytest.mark.parametrize("line", DEPENDENCIES)
def test_lock_lies_within_the_ranges_of_pyproject(line):
    wanted = Requirement(line)
    name = re.sub(r"[-_.]+", "-", wanted.name).lower()
    pins = [pin for pin in LOCK if re.sub(r"[-_.]+", "-", pin.name).lower() == name]
    assert len(pins) == 1
    assert wanted.specifier.contains(next(iter(pins[0].specifier)).version)


def test_make_installs_then_marks_it_done_when_there_is_no_venv(checkout):
    steps = planned(checkout)
    order = [steps.rindex(part) for part in ("rm -f", "-m venv", "-r requirements.lock", "-e .", "touch", "pytest")]
    assert order == sorted(order)


def test_make_installs_nothing_when_the_lock_is_installed(checkout):
    stamp(checkout)
    line, = planned(checkout).splitlines()
    assert line.split()[0] == "pytest"


def test_make_installs_again_when_the_lock_changes(checkout):
    stamp(checkout)
    with open(checkout / "requirements.lock", "a", encoding="utf-8") as file:
        file.write("six==1.16.0\n")
    assert "-r requirements.lock" in planned(checkout)


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_make_makes_the_environment_again_when_the_project_was_moved_or_copied(checkout, tmp_path_factory, how):
    """All but the installation itself."""
    makefile = (checkout / "Makefile").read_text("utf-8")
    (checkout / "Makefile").write_text(re.sub(r".* -m pip install .*", "\t@true", makefile)
                                       .replace("-m venv", "-m venv --without-pip"), "utf-8")
    make = ["make", "install", f"PYTHON={sys.executable}"]
    subprocess.run(make, cwd=checkout, check=True, capture_output=True)
    (checkout / ".venv/bin/old").symlink_to("python")
    subprocess.run(make, cwd=checkout, check=True, capture_output=True)
    assert (checkout / ".venv/bin/old").exists()            # in its own place nothing is made again
    other = tmp_path_factory.mktemp("other") / "project"
    if how == "moved":
        checkout.rename(other)
    else:
        shutil.copytree(checkout, other, symlinks=True)
    subprocess.run(make, cwd=other, check=True, capture_output=True)
    assert not (other / ".venv/bin/old").exists()
    assert f"{other}/.venv" in (other / ".venv/bin/activate").read_text("utf-8")


def test_make_goes_on_when_an_installation_was_interrupted(checkout):
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").touch()
    assert "-r requirements.lock" in planned(checkout)


def test_make_says_so_in_one_line_when_python_is_too_old(checkout):
    old = checkout / "old-python"
    code = "import sys; sys.version_info = (3, 9); exec(sys.argv[2])"
    old.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}' \"$@\"\n")
    old.chmod(0o755)
    done = subprocess.run(["make", "test", f"PYTHON={old}"], cwd=checkout, text=True, capture_output=True)
    assert done.returncode != 0
    assert "make: need Python 3.11 or 3.12, got 3.9. Run make PYTHON=/path/to/python3.11." in done.stderr
    assert not (checkout / ".venv").exists()


def test_usage_statistics_are_off_in_the_projects_own_files():
    assert "analytics = false" in (ROOT / ".dvc/config").read_text("utf-8")
    assert tomllib.loads((ROOT / "prefect.toml").read_text("utf-8"))["server"]["analytics_enabled"] is False
    assert "export DO_NOT_TRACK := 1" in (ROOT / "Makefile").read_text("utf-8")


def test_make_repro_does_without_git_when_there_is_none(checkout):
    """As in an archive that somebody downloaded."""
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(checkout.parent)}
    told = [subprocess.run(["make", "git"], cwd=checkout, check=True, capture_output=True, text=True,
                           env=environment).stderr for _ in range(2)]
    assert told[0].startswith("note: no git repository here, so DVC works without one")
    assert told[1] == ""
    assert (checkout / ".dvc/config.local").read_text() == "[core]\n    no_scm = true\n"
    (checkout / ".dvc/config.local").unlink()
    subprocess.run(["git", "init", "--quiet"], cwd=checkout, check=True)
    assert subprocess.run(["make", "git"], cwd=checkout, check=False, env=environment).returncode == 0
    assert not (checkout / ".dvc/config.local").exists()
