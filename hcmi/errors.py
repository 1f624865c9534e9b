"""One exception tree. The CLI prints an `HcmiError` as one line and exits with 1; any other exception is a bug.

Messages read `<subject>: need <X>, got <Y>. <next step>.`
"""

import errno
import os
import signal
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

# Control characters, bytes that are not UTF-8 (surrogates in Python's file names), line and paragraph separators.
HIDDEN = frozenset(("Cc", "Cs", "Zl", "Zp"))


def shown(text: object) -> str:
    """Text, such as a file name, as one line of printable UTF-8; other characters are escaped."""
    text = str(text)
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(char: str) -> str:
    if unicodedata.category(char) not in HIDDEN:
        return char
    if 0xDC80 <= ord(char) <= 0xDCFF:
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


class HcmiError(Exception):
    """An error that the user can correct: bad input, bad configuration, a missing file."""

    def __str__(self) -> str:
        return shown(super().__str__())     # messages contain file names


class ConfigError(HcmiError):
    """A value of params.yaml or of the command line is wrong."""


class DataError(HcmiError):
    """A caption file, a manifest, a shard or a folder of videos is wrong."""


class DecodeError(DataError):
    """One video cannot be decoded; `reason` is the short fixed word in `skipped.jsonl`."""

    def __init__(self, reason: str, message: str, path: str = ""):
        super().__init__(message)
        self.reason, self.path = reason, path

    def __reduce__(self):  # crosses process boundaries
        return type(self), (self.reason, str(self), self.path)


class ModelError(HcmiError):
    """A model folder, checkpoint, head or backbone is missing, unknown or of the wrong shape."""


class SearchIndexError(HcmiError):
    """A search index is missing, broken or was made by another model."""


class DriftError(HcmiError):
    """A drift profile or an incoming batch cannot be judged."""


class ReleaseError(HcmiError):
    """A release is missing or broken, or no release can be made."""


class MachineError(HcmiError):
    """The machine lacks disk space, memory or a permission; the input is not at fault."""


FREE = "Free space and run again."
PERMIT = "Correct the permissions, or name another place."
NEXT_STEPS = {
    errno.ENOSPC: FREE, errno.EDQUOT: FREE, errno.EFBIG: "Raise the limit on the size of a file and run again.",
    errno.EACCES: PERMIT, errno.EPERM: PERMIT, errno.EROFS: PERMIT,
    errno.ENOENT: "Correct the path.", errno.ENOTDIR: "Correct the path, or move away the file in its place.",
    errno.EEXIST: "Move away what is in its place.", errno.EISDIR: "Move away the folder in its place.",
    errno.ENAMETOOLONG: "Shorten the name.", errno.ELOOP: "Correct the link.",
    errno.EBUSY: "Name a folder inside it instead.",
    errno.EMFILE: "Raise the limit on open files (`ulimit -n`) and run again.",
    errno.ENOMEM: "Free memory and run again."}
WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def system_error(error: BaseException) -> OSError | None:
    """The operating system's error behind `error`; None when there is none.

    Libraries in C++ or Rust put the system's error into the text of their own error, or raise theirs from it.
    """
    if isinstance(error, OSError) and error.errno:
        return error
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in WRITING:
            return cause
        for number in WRITING:
            if os.strerror(number) in str(cause):
                return OSError(number, os.strerror(number))
        cause = cause.__cause__ or cause.__context__
    return None


def file_of(error: OSError) -> str | None:
    """The file that an error names; None when it names none or only a file descriptor."""
    return os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else None


def machine_error(subject: object, need: str, error: OSError) -> MachineError:
    """The system's refusal as one line."""
    number = error.errno or 0
    if number in WRITING or file_of(error):
        got = os.strerror(number)       # some libraries extend `strerror`
    else:
        got = " ".join(str(error.strerror).split())
    return MachineError(f"{subject}: need {need}, got: {got}. {NEXT_STEPS.get(number, 'Run again.')}")


@contextmanager
def hold_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back inside the block, which forks child processes.

    Ctrl-C reaches all processes of the terminal. A child inherits the mask, so Ctrl-C never meets it in the middle of
    Python's own work after a fork, which would print a traceback. The parent gets the signal after the block and ends
    its children.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
