"""``shinkei serve``."""

import click

from service.settings import Settings, Variable


class _WithVariables(click.Command):
    """Appends the environment variables to the help, and imports them only for that."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from service.settings import GROUPS, VARIABLES

        for group in GROUPS:
            with formatter.section(f"{group}, from the environment"):
                rows = [_describe(one) for one in VARIABLES.values() if one.group == group]
                formatter.write_dl(rows, col_max=0)


def _describe(variable: "Variable[object]") -> tuple[str, str]:
    default = f" [default: {variable.default_text}]" if variable.default_text else ""
    text = f"{variable.help} Expects {variable.parser.expects}."
    return (variable.name + default).replace("`", ""), text.replace("`", "")


@click.command(cls=_WithVariables)
@click.option(
    "--workers", type=click.IntRange(1, 256), help="Number of worker processes; overrides WORKERS."
)
def command(workers: int | None) -> None:
    """Serve the API until stopped.

    Without DATABASE_URL or DB_HOST, it starts an embedded PostgreSQL in DATA_DIR.
    """
    import asyncio
    import dataclasses
    import functools
    import os
    import signal
    import sys

    # Until the event loop handles SIGTERM, exiting this way stops what has been started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

    from service.process import worker

    if given := os.environ.pop(worker.VARIABLE, ""):
        sys.exit(worker.serve(given, workers))

    from service.commands.connection import database_of
    from service.process.announcing import Announcer, warn_of_unknown
    from service.process.exporter import exporting
    from service.process.server import listen, with_bound_port
    from service.process.server import serve as serve_alone
    from service.process.workers import Supervisor
    from service.settings import load_settings
    from service.telemetry.logs import configure_logging

    settings = load_settings(os.environ)
    settings = dataclasses.replace(settings, workers=workers or settings.workers)
    configure_logging(settings)
    warn_of_unknown(os.environ)
    with (
        listen(settings.host, settings.port) as listener,
        exporting(settings) as exporter,
        database_of(with_bound_port(settings, listener)) as ready,
    ):
        greet = functools.partial(_greet, settings)
        announcer = Announcer(ready, settings.database is None, greet)
        if settings.workers == 1:
            registry = exporter.registry if exporter else None
            serve_alone(ready, listener, announcer, registry)
        else:
            asyncio.run(Supervisor(ready, listener, announcer, exporter).serve())
    announcer.stopped()


def _greet(configured: "Settings", url: str) -> None:
    """Print the URL, the location of the data, and the docs, for people.

    With JSON logs, programs read the event instead, and all output stays JSON.
    """
    import sys

    from service import __version__
    from service.telemetry.logs import is_json

    if is_json(configured) and not sys.stdout.isatty():
        return
    where: object = configured.data_dir
    if configured.database is not None:
        where = f"PostgreSQL at {configured.database.address}"
    docs = "/docs" if configured.docs else "/openapi.json"
    click.echo(f"Shinkei {__version__} listens on {url} | data in {where} | docs at {url}{docs}")
