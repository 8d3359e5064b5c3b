"""The command line: `python -m pipelines`."""

import json
import tempfile
from pathlib import Path
from typing import Any

import click

from iusp.config import Config, load


class Commands(click.Group):
    """Turns what went wrong for the user into one line and exit status 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        from iusp.console import readable_failures

        with readable_failures():
            return super().invoke(ctx)


def changes(command: Any) -> Any:
    """Add the options that say what is compiled."""
    command = click.option(
        "-S",
        "--set",
        "changes",
        multiple=True,
        metavar="KEY=VALUE",
        help="Instead of params.yaml's, such as teacher.training.epochs=30; may be given several times.",
    )(command)
    return click.option("--image", help="Image of all steps; else kubeflow.image and kubeflow.light_image.")(command)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--params",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("params.yaml"),
    show_default=True,
    help="Settings of all steps, and of the cluster (`kubeflow`).",
)
@click.pass_context
def main(ctx: click.Context, params: Path) -> None:
    """The pipeline of `dvc repro`, as a Kubeflow pipeline: compile it, run it here, or submit it to a cluster."""
    ctx.obj = params


def _config(ctx: click.Context, changed: tuple[str, ...], image: str | None) -> Config:
    images = (f"kubeflow.image={image}", f"kubeflow.light_image={image}") if image else ()
    return load(ctx.obj, (*images, *changed))


@main.command(name="compile")
@changes
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="YAML to write.")
@click.pass_context
def compile_(ctx: click.Context, changes: tuple[str, ...], image: str | None, output: Path) -> None:
    """Write the pipeline as Kubeflow reads it (IR YAML)."""
    from pipelines.graph import write

    write(_config(ctx, changes, image), output)
    click.echo(f"{output}: upload it, or: python -m pipelines submit")


@main.command()
@changes
@click.option("--docker", is_flag=True, help="In containers of the images, instead of processes.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("kubeflow"),
    show_default=True,
    help="Folder of the artifacts, by run, and of MLflow's database where MLFLOW_TRACKING_URI is unset.",
)
@click.pass_context
def run(ctx: click.Context, changes: tuple[str, ...], image: str | None, docker: bool, output: Path) -> None:
    """Run the compiled pipeline on this machine, without a cluster, and show the results."""
    from iusp.console import show_results
    from pipelines.graph import write
    from pipelines.run import run as run_pipeline

    config = _config(ctx, changes, image)
    if config.dataset.source == "folder":
        # Tasks are started in other folders than this one.
        path = Path(config.dataset.path).resolve()
        config = _config(ctx, (*changes, f"dataset.path={json.dumps(str(path))}"), image)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "iusp.yaml"
        write(config, package)
        show_results(*run_pipeline(package, config, output, docker))


if __name__ == "__main__":
    main(prog_name="python -m pipelines")
