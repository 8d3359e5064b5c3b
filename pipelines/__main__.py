"""The command line: `python -m pipelines`."""

import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from iusp.cli.console import Commands
from iusp.config.params import Config, load
from iusp.errors import InputError


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
    images = () if image is None else (f"kubeflow.image={image}", f"kubeflow.light_image={image}")
    return load(ctx.obj, (*images, *changed))


@main.command(name="compile")
@changes
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="YAML to write.")
@click.pass_context
def compile_(ctx: click.Context, changes: tuple[str, ...], image: str | None, output: Path) -> None:
    """Write the pipeline as Kubeflow reads it (IR YAML)."""
    from pipelines.graph import check_source, write

    config = _config(ctx, changes, image)
    check_source(config)
    write(config, output)
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
    from iusp.cli.pipeline import show_results
    from pipelines.graph import write
    from pipelines.run import local_source
    from pipelines.run import run as run_pipeline

    config = _config(ctx, changes, image)
    if source := local_source(config):
        # Tasks are started in other folders than this one.
        key, place = source
        config = _config(ctx, (*changes, f"{key}={json.dumps(str(place))}"), image)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "iusp.yaml"
        write(config, package)
        show_results(*run_pipeline(package, config, output, docker))


@main.command()
@changes
@click.option(
    "--host", required=True, help="Kubeflow Pipelines' address, such as https://kubeflow.example.org/pipeline."
)
@click.option("--namespace", help="Of the run, where Kubeflow is shared by several users.")
@click.option("--experiment", default="iusp", show_default=True, help="Kubeflow's experiment; created if need be.")
@click.option("--run-name", help="[default: iusp, date and time; of a recurring run: iusp]")
@click.option("--no-cache", is_flag=True, help="Compute every task anew.")
@click.option("--wait", is_flag=True, help="Follow the run to its end, and fail if it fails.")
@click.option("--schedule", metavar="CRON", help="Run again and again: '0 3 * * 1' is Mondays at 3:00.")
@click.pass_context
def submit(
    ctx: click.Context,
    changes: tuple[str, ...],
    image: str | None,
    host: str,
    namespace: str | None,
    experiment: str,
    run_name: str | None,
    no_cache: bool,
    wait: bool,
    schedule: str | None,
) -> None:
    """Upload the pipeline as a new version and run it on a cluster.

    KF_PIPELINES_TOKEN holds a bearer token, KF_PIPELINES_SA_TOKEN_PATH names a file with one; SSL_CERT_FILE names
    certificates of your own.
    """
    from pipelines.graph import check_source, write
    from pipelines.submit import submit as submit_package

    config = _config(ctx, changes, image)
    check_source(config)
    for name in sorted({config.kubeflow.image, config.kubeflow.light_image}):
        if "/" not in name:
            click.echo(f"image {name} names no registry: the cluster's nodes must have it already", err=True)

    title = run_name or ("iusp" if schedule else f"iusp {time.strftime('%Y-%m-%d %H:%M:%S')}")
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "iusp.yaml"
        write(config, package)
        submit_package(package, "iusp", host, namespace, experiment, title, not no_cache, wait, schedule, click.echo)


def _object_name(ctx: click.Context, option: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", value):
        raise click.BadParameter(f"{value!r}: lower-case letters, digits and -, at most 63, as Kubernetes has it")
    return value


@main.command()
@changes
@click.option("--name", callback=_object_name, default="iusp-teacher", show_default=True, help="Of the job.")
@click.option(
    "--claim",
    callback=_object_name,
    required=True,
    help="Claim that holds the project's folder: params.yaml, data/, models/.",
)
@click.option("--nodes", type=click.IntRange(1, 1000), default=1, show_default=True, help="Pods.")
@click.option(
    "--processes", type=click.IntRange(1, 64), default=2, show_default=True, help="In each pod; one for each GPU."
)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="YAML to write.")
@click.pass_context
def trainjob(
    ctx: click.Context,
    changes: tuple[str, ...],
    image: str | None,
    name: str,
    claim: str,
    nodes: int,
    processes: int,
    output: Path,
) -> None:
    """Write a TrainJob of Kubeflow Trainer for a teacher too big for one process."""
    import yaml

    from iusp.io.files import atomic
    from pipelines.graph import MLFLOW_KEYS
    from pipelines.trainjob import manifest

    for change in changes:
        if not change.startswith("kubeflow."):
            raise InputError(f"-S {change}: the job reads params.yaml on the claim; change it there")
    cluster = _config(ctx, changes, image).kubeflow
    pod = cluster.pod_of("teacher")
    secret = cluster.mlflow_secret
    document = manifest(
        name,
        cluster.image,
        claim,
        user=cluster.user,
        nodes=nodes,
        processes_per_node=processes,
        cpu=pod.cpu,
        memory=pod.memory,
        accelerators={pod.accelerator.resource: pod.accelerator.count} if pod.accelerator else {},
        timeout_seconds=pod.timeout_seconds,
        node_selector=pod.node_selector,
        tolerations=[toleration.model_dump(exclude_none=True) for toleration in pod.tolerations],
        secrets={"MLFLOW_TRACKING_URI": secret} if secret else {},
        optional_secrets=dict.fromkeys(MLFLOW_KEYS, secret) if secret else {},
    )
    with atomic(output) as temporary:
        temporary.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    click.echo(f"{output}: kubectl create --filename {output}")


if __name__ == "__main__":
    main(prog_name="python -m pipelines")
