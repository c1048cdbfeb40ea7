"""Errors that stop a command or the service, each printed as one line on stderr."""


class StartError(Exception):
    """The service cannot start, or a command cannot run; the operator sees only the message."""


class ArgumentError(Exception):
    """A command has an invalid argument; the operator sees only the message."""


class DatabaseUnavailable(Exception):
    """The database is unavailable; ``__cause__`` holds the reason.

    A request gets a 503, and a command exits with code 1.
    """
