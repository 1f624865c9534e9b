"""One exception tree. The CLI prints any `HcmiError` as one line and exits 1; everything else is a bug.

Messages read `<subject>: need <X>, got <Y>. <next step>.`
"""

import errno
import os
import unicodedata

# Control characters, bytes that are no UTF-8 (as Python keeps them in file names), separators of lines and paragraphs.
HIDDEN = frozenset(("Cc", "Cs", "Zl", "Zp"))


def shown(text: object) -> str:
    """Text, such as a file's name, as one line that can be printed and written in UTF-8: what cannot is escaped."""
    text = str(text)
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(char: str) -> str:
    if unicodedata.category(char) not in HIDDEN:
        return char
    if 0xDC80 <= ord(char) <= 0xDCFF:
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


class HcmiError(Exception):
    """Something the user can put right: bad input, bad configuration, a missing file."""

    def __str__(self) -> str:
        return shown(super().__str__())     # messages name files


class ConfigError(HcmiError):
    """params.yaml or a command-line value is wrong."""


class DataError(HcmiError):
    """A caption file, a manifest, a shard or a folder of videos is wrong."""


class DecodeError(DataError):
    """One video cannot be turned into frames; `reason` is a short fixed word for `skipped.jsonl`."""

    def __init__(self, reason: str, message: str, path: str = ""):
        super().__init__(message)
        self.reason, self.path = reason, path

    def __reduce__(self):  # crosses process boundaries
        return type(self), (self.reason, str(self), self.path)


class ModelError(HcmiError):
    """A model folder, checkpoint, head or backbone is missing, unknown or does not fit."""


class SearchIndexError(HcmiError):
    """A search index is missing, broken or was made by another model."""


class DriftError(HcmiError):
    """A drift profile or an incoming batch cannot be judged."""


class MachineError(HcmiError):
    """The machine lacks room, memory or a permission; what was being read is not to blame."""


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
    """The operating system's error that `error` is, or that stopped a library from writing; None where there is none.

    Libraries in C++ or Rust tell the system's error in the text of one of their own, or raise theirs on top of it.
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
    """The file that an error names; it may name none, or the number of an open one."""
    return os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else None


def machine_error(subject: object, need: str, error: OSError) -> MachineError:
    """One line about what the system refused."""
    number = error.errno or 0
    if number in WRITING or file_of(error):
        got = os.strerror(number)       # some libraries put more words into `strerror`
    else:
        got = " ".join(str(error.strerror).split())
    return MachineError(f"{subject}: need {need}, got: {got}. {NEXT_STEPS.get(number, 'Run again.')}")
