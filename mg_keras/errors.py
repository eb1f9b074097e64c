"""The exceptions that mean "the user can fix this"."""


class UserError(Exception):
    """A wrong argument, file or folder: programs print its one line and exit with status 2.

    The message says what was wrong, the value received, and what would be right. Anything else that escapes a
    program is a bug of ours and keeps its traceback.

    Attributes:
        status: the program's exit status.
    """

    status = 2


class WorkerLost(UserError):
    """Another worker of a training is gone: started again, all go on from the last checkpoint."""

    # EX_TEMPFAIL of sysexits.h: try again
    status = 75
