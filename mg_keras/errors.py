"""The exceptions that mean "the user can fix this", and what they say of others' errors."""


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


def first_line(error: object) -> str:
    """The first line of an error, or of its message; the name of its type where it says nothing.

    Example:
        >>> first_line(OSError("the disk is gone\\nat 0x7f")), first_line(KeyboardInterrupt())
        ('the disk is gone', 'KeyboardInterrupt')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
