"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """A wrong argument, file or folder: programs print its one line and exit with status 2.

    The message says what was wrong, the value received, and what would be right. Anything else that escapes a
    program is a bug of ours and keeps its traceback.
    """
