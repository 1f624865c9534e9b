"""What the machine refuses is one line and exit code 1: before the work where it can be asked, or with nothing lost."""

import contextlib
import errno
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from hcmi.cli import main

ROOT = Path(__file__).resolve().parents[1]
FULL = "No space left on device. Free space and run again."
# Verb -> its other arguments, and its outputs by option: a file, a folder that is replaced, a folder that is added to.
VERBS = {
    "dataset": ([], {"--manifest": "folder", "--generated": "folder", "--incoming": "inside"}),
    "shards": (["--manifest", "manifest.parquet"], {"--out": "folder"}),
    "train": ([], {"--out": "folder", "--metrics": "inside", "--checkpoints": "inside"}),
    "evaluate": (["--model", "model"], {"--out": "file", "--plots": "folder", "--encoded": "file"}),
    "export": (["--model", "model"], {"--out": "folder"}),
    "drift": (["--model", "model", "--incoming", "incoming"], {"--out": "folder"}),
    "search": (["red", "--model", "model", "--videos", "few"], {"--explain": "file", "HCMI_CACHE": "inside"}),
    "promote": (["--model", "model"], {"--releases": "inside"}),
    "add": (["--batch", "batch", "--incoming", "incoming", "--releases", "served"],
            {"--accepted": "file", "--reports": "inside"}),
    "init": ([], {"": "inside"}),       # the folder is its argument
}
# A file by which an earlier output is known: a person's folder is not replaced.
SIGNS = {("dataset", "--manifest"): "manifest.parquet", ("dataset", "--generated"): "annotation.jsonl",
         ("shards", "--out"): "index.parquet", ("train", "--out"): "config.json", ("evaluate", "--plots"): "run.json",
         ("export", "--out"): "meta.json", ("drift", "--out"): "report.json"}
OUTPUTS = [(verb, option) for verb, (_, outputs) in VERBS.items() for option in outputs]


Case = tuple[str, str]      # verb and option


@pytest.fixture(scope="module", autouse=True)
def _served(project):
    """A release in the project, beside the folder where releases are looked for."""
    with contextlib.chdir(project):
        done = CliRunner().invoke(main, ["promote", "--model", "model", "--releases", "served"])
    assert done.exit_code == 0, done.stderr


def command(verb: str, outputs: dict[str, Path]) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of a verb; outputs that are not given go to files of their own."""
    arguments, known = VERBS[verb]
    options = {option: str(outputs.get(option, f"spare-{verb}{option}")) for option in known}
    environment = {"HCMI_CACHE": options.pop("HCMI_CACHE")} if "HCMI_CACHE" in options else {}
    if "--explain" not in outputs:
        options.pop("--explain", None)
    return [verb, *arguments, *(part for option in options.items() for part in option if part)], environment


PROGRAM = """
import json, sys
from click.testing import CliRunner
from hcmi.cli import main
for arguments, environment in json.load(sys.stdin):
    result = CliRunner().invoke(main, arguments, env=environment)
    print(json.dumps([result.exit_code, result.stderr, repr(result.exception)]), flush=True)
"""


def run(project: Path, outputs: dict[Case, Path], before: str = "", prefix: tuple[str, ...] = ()
        ) -> dict[Case, tuple[int, list[str]]]:
    """Exit code of each verb with the one output, in one process after the lines of Python `before`; and its lines on
    stderr that are neither progress nor a note nor about an epoch."""
    commands = [command(verb, {option: path}) for (verb, option), path in outputs.items()]
    done = subprocess.run([*prefix, sys.executable, "-c", before + PROGRAM], cwd=project, input=json.dumps(commands),
                          text=True, timeout=280, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, f"{done.returncode} after {done.stdout[-500:]}: {done.stderr[-2000:]}"
    found = {}
    for case, line in zip(outputs, done.stdout.splitlines(), strict=True):
        code, text, error = json.loads(line)
        assert error in ("None", f"SystemExit({code})"), f"{case}: {error}"
        found[case] = code, [line for line in re.split(r"[\r\n]+", text) if line and " so far, " not in line
                              and not line.startswith(("note: ", "epoch "))]
    return found


def name_of(verb: str, option: str, folder: Path) -> Path:
    kind = VERBS[verb][1][option]
    return folder / (("out.png" if verb == "search" else "out.json") if kind == "file" else "out")


# ----------------------------------------------------------------------------------------------------- asked beforehand

@pytest.mark.parametrize(("verb", "option"), OUTPUTS)
def test_output_is_refused_before_the_work_when_a_file_is_in_the_way(project, tmp_path, verb, option):
    (tmp_path / "way").write_text("a file")
    line, = asked(project, verb, {option: name_of(verb, option, tmp_path / "way")})
    assert re.fullmatch(rf"hcmi: {tmp_path}/way/\S+: need the folder {tmp_path}/way, got a file in its place. "
                        r"Move it away.( HCMI_CACHE names .*)?", line)


@pytest.mark.parametrize(("verb", "option"), [(verb, option) for verb, option in OUTPUTS
                                              if VERBS[verb][1][option] != "inside"])
def test_output_is_refused_before_the_work_when_something_else_is_in_its_place(project, tmp_path, verb, option):
    place = name_of(verb, option, tmp_path)
    if VERBS[verb][1][option] == "file":
        place.mkdir()
        line, = asked(project, verb, {option: place})
        assert line == f"hcmi: {place}: need a file or nothing there, got a folder. Move it away."
    else:
        place.write_text("a file")
        line, = asked(project, verb, {option: place})
        assert line == f"hcmi: {place}: need a folder or nothing there, got a file. Move it away."
        assert place.read_text() == "a file"


@pytest.mark.parametrize(("verb", "option"), OUTPUTS)
def test_output_is_refused_before_the_work_when_the_disk_is_full(project, small_disk, verb, option):
    disk = small_disk(4096)
    line, = asked(project, verb, {option: name_of(verb, option, disk)})
    assert line.startswith(f"hcmi: {disk}/out")
    assert f": need to write it, got: {FULL}" in line
    assert list(disk.iterdir()) == []


def test_output_is_refused_before_the_work_when_a_disk_is_mounted_there(project, small_disk):
    """It could not be replaced in the end."""
    disk = small_disk(2**22)
    line, = asked(project, "export", {"--out": disk})
    assert line == (f"hcmi: {disk}: need a folder that can be replaced, got one where a disk is mounted. "
                    f"Name a folder inside it.")


def test_output_is_refused_before_the_work_when_the_folder_is_read_only(project, tmp_path, plain_user):
    place = tmp_path / "locked"
    place.mkdir(mode=0o555)
    outputs = {case: name_of(*case, place) for case in OUTPUTS}
    for case, (code, lines) in run(project, outputs, NO_WORK, tuple(plain_user)).items():
        assert (code, len(lines)) == (1, 1), f"{case}: {lines}"
        assert lines[0].startswith(f"hcmi: {place}/out"), case
        assert ": need to write it, got: Permission denied. Correct the permissions, or name another place." in lines[0]


WORK = ("hcmi.video.pool.DecoderPool.map", "hcmi.shards.reader.ShardReader.__init__", "hcmi.scenes.write.write_videos")
NO_WORK = ("import hcmi.video.pool, hcmi.shards.reader, hcmi.scenes.write\n"
           + "".join(f"{name} = None\n" for name in WORK))


def asked(project: Path, verb: str, outputs: dict[str, Path]) -> list[str]:
    """What a verb says that must not begin its work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        for name in WORK:
            patch.setattr(name, None)
        arguments, environment = command(verb, outputs)
        result = CliRunner().invoke(main, arguments, env=environment)
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result.stderr.splitlines()


# -------------------------------------------------------------------------------------------------------- in the middle

@pytest.mark.timeout(600)
@pytest.mark.parametrize("cases", [[("shards", "--out"), ("train", "--out"), ("export", "--out")],
                                   pytest.param(OUTPUTS, marks=pytest.mark.slow)], ids=["some", "all"])
def test_old_output_stays_and_the_next_run_works_when_the_disk_fills(project, small_disk, cases):
    """A mapped file on a full disk ended the process with SIGBUS; torch, FAISS and DVCLive have errors of their own."""
    outputs = {case: name_of(*case, small_disk(2**26)) for case in cases}
    for case, output in outputs.items():
        old = output if kind_of(case) == "file" else output / SIGNS.get(case, "old.json")
        old.parent.mkdir(exist_ok=True)
        old.write_text("old")
        free = 0 if case == ("dataset", "--manifest") else 1        # a short manifest takes one block
        with open(output.parent / "ballast", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, 4096 * (os.statvfs(output.parent).f_bavail - free))
    for case, (code, lines) in run(project, outputs, "import hcmi.files\nhcmi.files.CHECKED_BYTES = 0\n").items():
        output = outputs[case]
        assert (code, len(lines)) == (1, 1), f"{case}: {lines}"
        assert re.fullmatch(rf"hcmi: {output}\S*: need to write it, got: {FULL}", lines[0]), f"{case}: {lines}"
        old = output if kind_of(case) == "file" else output / SIGNS.get(case, "old.json")
        assert old.read_text() == "old", case
        assert {path.name for path in output.parent.iterdir()} <= {"ballast", output.name, f"{output.name}.work"}, case
        if kind_of(case) == "folder":
            assert list(output.iterdir()) == [old], case
        (output.parent / "ballast").unlink()
    for case, (code, lines) in run(project, outputs).items():
        assert (code, lines) == (0, []), case
        assert outputs[case].is_file() or kind_of(case) != "file"


def kind_of(case: Case) -> str:
    return VERBS[case[0]][1][case[1]]


def test_run_ends_in_one_line_when_files_may_not_grow(project, tmp_path):
    """As a disk that fills, for those who cannot mount one."""
    outputs = {case: name_of(*case, tmp_path / "-".join(case)) for case in OUTPUTS}
    before = ("import hcmi.files, resource\nhcmi.files.CHECKED_BYTES = 0\n"
              "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n")
    for case, (code, lines) in run(project, outputs, before).items():
        assert (code, len(lines)) == (1, 1), f"{case}: {lines}"
        assert re.fullmatch(r"hcmi: \S+: need to write it, got: File too large. Raise the limit on the size of a file "
                            r"and run again.", lines[0]), f"{case}: {lines}"


# ------------------------------------------------------------------------------- system errors that no stage handles

NO_MEMORY = "DefaultCPUAllocator: can't allocate memory: you tried to allocate"


@pytest.mark.parametrize(("error", "said"), [
    (PermissionError(errno.EACCES, "no", "a\nb"),
     r"a\nb: need to open it, got: Permission denied. Correct the permissions, or name another place."),
    (OSError(errno.ENOSPC, "disk full, says a library"),
     f"doctor: need to read its input and write its output, got: {FULL}"),
    (RuntimeError("write error in x: 3 != 4 (No space left on device)"),
     f"doctor: need to read its input and write its output, got: {FULL}"),
    (FileNotFoundError(errno.ENOENT, "No usable temporary directory"),
     "doctor: need to read its input and write its output, got: No usable temporary directory. Correct the path."),
    (MemoryError(), "doctor: need more memory than there is, got: MemoryError. Free memory, or lower batch sizes and "
                    "num_workers in params.yaml."),
    (RuntimeError(f"{NO_MEMORY}\n9 bytes"), f"doctor: need more memory than there is, got: {NO_MEMORY} 9 bytes. "
                                            "Free memory, or lower batch sizes and num_workers in params.yaml."),
])
def test_verb_ends_in_one_line_when_the_machine_fails_where_nobody_asked(monkeypatch, error, said):
    def fail(*_):
        raise error

    monkeypatch.setattr("hcmi.config.load_params", fail)
    result = CliRunner().invoke(main, ["doctor", "."])
    assert (result.exit_code, result.stderr) == (1, f"hcmi: {said}\n")


def test_verb_keeps_the_traceback_of_a_bug(monkeypatch):
    def fail(*_):
        try:
            open("/nowhere/at/all")  # noqa: SIM115  met and dealt with
        except OSError:
            raise KeyError("a bug")  # noqa: B904

    monkeypatch.setattr("hcmi.config.load_params", fail)
    assert isinstance(CliRunner().invoke(main, ["doctor", "."]).exception, KeyError)


def read_terminal(terminal: int) -> str:
    """Nothing when every process that wrote to it has ended."""
    try:
        return os.read(terminal, 10_000).decode("utf-8", "replace")
    except OSError:
        return ""


def listen_to_interrupts() -> None:
    """A shell without job control starts what is in the background so that it ignores Ctrl-C, children included."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def assert_group_ends(group: int) -> None:
    """A killed process is a member of its group until it is reaped, which may take a moment on a busy machine."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail(f"group {group}: need no process left, got one after a minute")


@pytest.mark.parametrize(("verb", "sign"), [("dataset", "drawing"), ("search", "read videos")])
def test_verb_ends_in_one_line_and_leaves_nothing_when_it_is_interrupted(project, tmp_path, verb, sign):
    """Ctrl-C goes to every process of the terminal, so to those that draw and decode too."""
    outputs = {option: name_of(verb, option, tmp_path / "new") for option in VERBS[verb][1]}
    outputs.pop("--explain", None)
    arguments, environment = command(verb, outputs)
    terminal, end = pty.openpty()       # so that a bar says at once that the work has begun
    termios.tcsetwinsize(end, (24, 100))
    with subprocess.Popen([sys.executable, "-m", "hcmi.cli", *arguments], cwd=project, stderr=end,
                          start_new_session=True, preexec_fn=listen_to_interrupts,
                          env={**os.environ, "PYTHONPATH": str(ROOT), **environment}) as process:
        os.close(end)
        read = ""
        while sign not in read:
            read += os.read(terminal, 100).decode("utf-8", "replace")
        os.killpg(process.pid, signal.SIGINT)
        rest = "".join(iter(lambda: read_terminal(terminal), ""))
    os.close(terminal)
    assert process.returncode == 130, rest
    assert [line for line in re.split(r"[\r\n]+", rest) if "hcmi" in line] == ["hcmi: stopped."]
    assert "Traceback" not in rest
    assert_group_ends(process.pid)


def test_search_says_nothing_when_its_reader_has_enough(project):
    arguments, environment = command("search", {})
    done = subprocess.run(["bash", "-c", '"$@" --json | head -c 1', "", sys.executable, "-m", "hcmi.cli", *arguments],
                          cwd=project, text=True, capture_output=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), **environment})
    assert done.stdout == "["
    assert [line for line in re.split(r"[\r\n]+", done.stderr) if line and " so far, " not in line] == []


# ---------------------------------------------------------------------------------------------------------- without git

@pytest.mark.parametrize("kind", ["no git", "git alone", "no commit"])
def test_train_works_when_git_has_nothing_to_say(project, tmp_path, monkeypatch, kind):
    """DVCLive asks for the last commit, and made a DVC repository of any git repository."""
    for name in ("params.yaml", "data"):
        (tmp_path / name).symlink_to(project / name)
    if kind != "no git":
        subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    if kind == "no commit":
        shutil.copytree(ROOT / ".dvc", tmp_path / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    result = CliRunner().invoke(main, ["train", "--json"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "metrics/train/metrics.json").is_file()
    assert (tmp_path / ".dvc").exists() == (kind == "no commit")
