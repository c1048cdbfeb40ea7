"""Errors that stop a command or the service, each shown as one line on stderr."""


class StartError(Exception):
    """The service cannot start or a command cannot run; the message is the operator's one line."""


class ArgumentError(Exception):
    """An argument of a command cannot be taken; the message is the operator's one line."""


class DatabaseUnavailable(Exception):
    """The database cannot answer now; its cause says why.

    A request becomes a 503, a command ends with exit code 1.
    """
