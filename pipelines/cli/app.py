"""The command `vapi` itself: how its subcommands are listed, what a wrong one says, and how they end.

Modules beside this one hold names, options and help alone. What a subcommand does is imported when it runs: help is
quick, and each part needs only the packages that it uses.
"""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from pipelines.messages import one_message
from vapi_core.errors import VapiError

EXPERIMENT, IMAGES, SERVERS = "The experiment", "Images and models", "Servers and speed"  # panels of the help
OWN = ("pipelines", "vapi_core", "benchmarks")
F = TypeVar("F", bound=Callable[..., Any])

Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]

app = typer.Typer(
    name="vapi",
    help="VA-π Lab: reinforcement learning that aligns an autoregressive image generator with its tokenizer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


class Told(TyperCommand):
    """A subcommand that ends as every command here does: one message where the user or the machine is at fault."""

    def invoke(self, ctx: Any) -> Any:
        def run() -> int | None:
            try:
                return super(Told, self).invoke(ctx)
            except ModuleNotFoundError as error:
                package = (error.name or "").partition(".")[0]
                if package in OWN:
                    raise
                remedy = "`pip install -e '.[lab]'` installs all that the lab needs."
                raise VapiError(f"the package {package} is not installed. {remedy}") from error

        raise typer.Exit(one_message(run)())


def command(*examples: str, panel: str = "", to: typer.Typer = app, **more: Any) -> Callable[[F], F]:
    """Decorates a subcommand, a function whose name is its own; its help ends with the examples."""
    shown = "\n\n".join(("Examples:" if len(examples) > 1 else "Example:", *examples))
    return to.command(cls=Told, epilog=shown, rich_help_panel=panel or None, **more)


def group(name: str, text: str, panel: str) -> typer.Typer:
    """A subcommand that has subcommands."""
    made = typer.Typer(help=text, no_args_is_help=True, rich_markup_mode="rich")
    app.add_typer(made, name=name, rich_help_panel=panel)
    return made
