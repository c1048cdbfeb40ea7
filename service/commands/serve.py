"""``shinkei serve``."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from service.settings import Settings


@click.command()
def command() -> None:
    """Serve until stopped.

    Without DATABASE_URL or DB_HOST, on an embedded PostgreSQL in DATA_DIR.
    """
    import os

    from service.commands.connection import database_of
    from service.logs import configure_logging
    from service.server import listen, serve
    from service.settings import load_settings

    settings = load_settings(os.environ)
    configure_logging(settings)
    with listen(settings) as listener, database_of(settings) as ready:
        serve(ready, listener, _announce(settings))


def _announce(configured: "Settings") -> Callable[[str], None]:
    """One line that says where it listens, where its data lies, and where its docs are."""
    from service import __version__

    where: object = configured.data_dir
    if configured.database is not None:
        where = f"PostgreSQL at {configured.database.address}"
    docs = "/docs" if configured.docs else "/openapi.json"
    return lambda url: click.echo(
        f"Shinkei {__version__} listens on {url} | data in {where} | docs at {url}{docs}"
    )
