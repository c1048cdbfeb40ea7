"""``shinkei completion``."""

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a shell completion script.

    \b
    bash: eval "$(shinkei completion bash)"        in ~/.bashrc
    zsh:  eval "$(shinkei completion zsh)"         in ~/.zshrc
    fish: shinkei completion fish > ~/.config/fish/completions/shinkei.fish
    """
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    assert complete is not None  # noqa: S101
    root = ctx.find_root()
    # complete.source() would run bash to check its version.
    script = complete(root.command, {}, "shinkei", "_SHINKEI_COMPLETE")
    click.echo(script.source_template % script.source_vars())
