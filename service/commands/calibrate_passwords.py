"""``shinkei calibrate-passwords``."""

import click

from service.commands.output import json_option


@click.command()
@click.option(
    "--target-ms",
    type=click.IntRange(1, 10_000),
    default=200,
    show_default=True,
    help="Target time of one password hash on this machine.",
)
@json_option
def command(target_ms: int, as_json: bool) -> None:
    """Find the password hash settings that suit this machine.

    Prints the settings whose hash takes the target time or slightly less, but never less than
    OWASP's minimum.
    """
    from service.auth.passwords import calibrate
    from service.commands.output import print_json, progress

    with progress("measuring password hashes"):
        memory_kib, iterations, measured_ms = calibrate(target_ms)
    settings = {
        "PASSWORD_HASH_MEMORY_KIB": memory_kib,
        "PASSWORD_HASH_ITERATIONS": iterations,
    }
    if as_json:
        print_json({"settings": settings, "measured_ms": round(measured_ms, 1)})
        return
    click.echo(f"# {measured_ms:.0f} ms on this machine, hashing one password at a time")
    for name, value in settings.items():
        click.echo(f"{name}={value}")
