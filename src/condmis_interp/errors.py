"""Errors that are sentences: what was wrong, where, and what would be right.

`UserError` is for input that a person can mend (exit code 2); `CheckError` is for an expectation about a model, a
file or a measurement that turned out false (exit code 1). Neither shows a traceback on the command line unless
`--debug` is given.
"""

import errno


class CondmisError(Exception):
    """Base of all errors this package raises on purpose.

    Args:
        what: What was wrong, as a sentence.
        where: File, key, organism or cell it was found in.
        fix: What would be right.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        parts = [f"{where}: {what}" if where else what]
        if fix:
            parts.append(fix)
        super().__init__(" ".join(part if part.endswith((".", "?", "!")) else part + "." for part in parts))


class UserError(CondmisError):
    """The user's input cannot be used as it is."""

    exit_code = 2


class CheckError(CondmisError):
    """Something that had to hold did not: a silent no-op, a broken file, a failed sanity check."""


def os_sentence(error: OSError) -> str:
    """Returns what an error of the operating system means for a run, as a sentence."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}the disk is full. What was finished is kept; free some space and run the same command to go on."
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"{where}this place cannot be written to. Give another --out, or set CONDMIS_HOME to a folder you own."
    return f"{where}{error.strerror or error}"
