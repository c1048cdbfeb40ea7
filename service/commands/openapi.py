"""``shinkei openapi``."""

import click


@click.command()
@click.option(
    "--output",
    type=click.Path(dir_okay=False, writable=True),
    help="Write to this file instead of stdout.",
)
def command(output: str | None) -> None:
    """Print the API description.

    The same OpenAPI 3.1 document that /openapi.json serves with these settings.
    """
    import json
    from pathlib import Path

    from service.commands.connection import read_settings
    from service.openapi.document import document
    from service.routes import served

    settings = read_settings()
    text = json.dumps(document(served(settings), settings), indent=2) + "\n"
    if output is None:
        click.echo(text, nl=False)
    else:
        Path(output).write_text(text, encoding="utf-8")
