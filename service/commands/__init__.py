"""The commands of ``shinkei``, one module each, imported when its command is asked for.

Modules here import nothing but click at their top, so that ``--help`` and shell completion, which
look at every command, do not wait for what one of them works with.
"""

import importlib

import click

from service import __version__

# Each is the attribute ``command`` of the module of its name.
COMMANDS = (
    "serve",
    "migrate",
    "create-admin",
    "users",
    "keys",
    "doctor",
    "openapi",
    "calibrate-passwords",
    "completion",
)
EXIT_CODES = """\b
Exit codes:
  0    done
  1    cannot be done now; one line says why
  2    a setting or an argument is wrong
  130  interrupted (Ctrl-C)"""


class _Commands(click.Group):
    """Finds a command in its module (click's manual, "Lazily Loading Subcommands")."""

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
            # Otherwise click would write an empty line to stderr.
            raise click.Abort from None


@click.command(cls=_Commands, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="shinkei")
def shinkei() -> None:
    """Accounts over HTTP and PostgreSQL. shinkei serve --help lists its settings."""
