"""What a user can cause, and how it is said: one sentence and an exit code, no traceback."""


class UserError(Exception):
    """The command line, the configuration or an input is wrong (exit code 2).

    The message is what the user reads: what is wrong, where, and what to write instead.
    """

    exit_code = 2


class RunFailed(Exception):
    """The run itself failed, by no fault of the command (exit code 1)."""

    exit_code = 1
