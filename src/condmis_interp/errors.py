"""Errors that are sentences: what was wrong, where, and what would be right.

`UserError` is for input that a person can mend (exit code 2); `CheckError` is for an expectation about a model, a
file or a measurement that turned out false (exit code 1). Neither shows a traceback on the command line unless
`--debug` is given.
"""


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
