"""The commands of ``shinkei``, one module each, imported on demand.

At module level they import only light modules, so that ``--help`` and shell completion, which load
every command, stay fast.
"""

import importlib

import click

from service import __version__

# Each name is a module here, with an attribute ``command``.
COMMANDS = (
    "serve",
    "migrate",
    "create-admin",
    "users",
    "audit",
    "keys",
    "doctor",
    "openapi",
    "calibrate-passwords",
    "completion",
)
EXIT_CODES = """\b
Exit codes:
  0    success
  1    failure; the output says why
  2    invalid setting or argument
  130  interrupted (Ctrl-C)"""


class _Commands(click.Group):
    """Loads commands lazily (see "Lazily Loading Subcommands" in click's documentation)."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"service.commands.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            # click itself would write an empty line to stderr.
            raise click.Abort from None


@click.command(cls=_Commands, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="shinkei")
def shinkei() -> None:
    """User accounts over HTTP and PostgreSQL. shinkei serve --help lists all settings."""
