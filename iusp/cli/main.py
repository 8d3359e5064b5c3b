"""The command `iusp`: the root group and the headings of its help page."""

import os
from pathlib import Path

import click

from iusp import __version__
from iusp.cli import data, device, pipeline, registry
from iusp.cli.console import Commands
from iusp.errors import InputError

SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Pipeline": (
        pipeline.dataset,
        pipeline.features,
        pipeline.teacher,
        pipeline.recipes,
        pipeline.student,
        pipeline.evaluation,
        pipeline.registration,
        pipeline.config,
    ),
    "Recordings": (data.cut,),
    "Results": (pipeline.results, data.score, data.compare),
    "Registry": (registry.models, registry.promote, registry.rollback, registry.history),
    "Device": (device.release, device.fetch, device.tag, device.monitor, device.executorch),
}


class Sections(Commands):
    """Lists the commands under headings."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the part of the help page that lists the commands."""
        longest = max(len(command.name or "") for commands in SECTIONS.values() for command in commands)
        for heading, commands in SECTIONS.items():
            with formatter.section(heading):
                limit = formatter.width - 6 - longest
                rows = [(f"{command.name:{longest}}", command.get_short_help_str(limit)) for command in commands]
                formatter.write_dl(rows)


@click.group(cls=Sections, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option(
    "--params",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("params.yaml"),
    show_default=True,
    help="File with the settings of all steps.",
)
@click.pass_context
def main(ctx: click.Context, params: Path) -> None:
    """Distill a large audio tagger into small ones that run on a device.

    The commands under Pipeline are the steps, in the order in which they run; each step reads what the earlier ones
    wrote. `dvc repro` runs every step whose code, settings or inputs have changed.

    \b
    Example:
      dvc repro          # run the pipeline
      iusp results       # show quality and cost of every network
      iusp promote 1     # make version 1 the champion, if it passes the gate
      iusp tag street.wav
    """
    ctx.obj = params
    if "TORCHELASTIC_RUN_ID" in os.environ and ctx.invoked_subcommand != "teacher":
        raise InputError(
            f"iusp {ctx.invoked_subcommand} runs in one process; start it without torchrun, which only iusp teacher "
            "supports"
        )


for group in SECTIONS.values():
    for command in group:
        main.add_command(command)
