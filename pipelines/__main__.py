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
    """Add the options that change the settings to compile."""
    command = click.option(
        "-S",
        "--set",
        "changes",
        multiple=True,
        metavar="KEY=VALUE",
        help="Replace a setting of params.yaml, such as teacher.training.epochs=30; can be repeated.",
    )(command)
    return click.option("--image", help="Image of all steps.  [default: kubeflow.image and kubeflow.light_image]")(
        command
    )


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--params",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("params.yaml"),
    show_default=True,
    help="Settings of all steps and of the cluster (section `kubeflow`).",
)
@click.pass_context
def main(ctx: click.Context, params: Path) -> None:
    """Compile the pipeline of `dvc repro` for Kubeflow, run it on this machine, or submit it to a cluster."""
    ctx.obj = params


def _config(ctx: click.Context, changed: tuple[str, ...], image: str | None) -> Config:
    images = () if image is None else (f"kubeflow.image={image}", f"kubeflow.light_image={image}")
    return load(ctx.obj, (*images, *changed))


@main.command(name="compile")
@changes
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="YAML to write.")
@click.pass_context
def compile_(ctx: click.Context, changes: tuple[str, ...], image: str | None, output: Path) -> None:
    """Write the pipeline as a Kubeflow package (IR YAML)."""
    from pipelines.graph import check_source, write

    config = _config(ctx, changes, image)
    check_source(config)
    write(config, output)
    click.echo(f"{output}: upload it, or: python -m pipelines submit")


@main.command()
@changes
@click.option("--docker", is_flag=True, help="Run each task in a container of its image instead of a process.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("kubeflow"),
    show_default=True,
    help="Folder for the artifacts of each run, and for MLflow's database if MLFLOW_TRACKING_URI is unset.",
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
        # Tasks start in another working folder, so relative paths must become absolute.
        key, place = source
        config = _config(ctx, (*changes, f"{key}={json.dumps(str(place))}"), image)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "iusp.yaml"
        write(config, package)
        show_results(*run_pipeline(package, config, output, docker))


@main.command()
@changes
@click.option(
    "--host", required=True, help="Address of Kubeflow Pipelines, such as https://kubeflow.example.org/pipeline."
)
@click.option("--namespace", help="Namespace of the run, if several users share Kubeflow.")
@click.option(
    "--experiment",
    default="iusp",
    show_default=True,
    help="Kubeflow experiment of the run; created if it does not exist.",
)
@click.option("--run-name", help="Name of the run.  [default: iusp with date and time; iusp for a recurring run]")
@click.option("--no-cache", is_flag=True, help="Run every task, even if Kubeflow has its outputs in the cache.")
@click.option("--wait", is_flag=True, help="Wait until the run ends, and fail if it fails.")
@click.option("--schedule", metavar="CRON", help="Run on a schedule: '0 3 * * 1' is Mondays at 3:00.")
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

    Set KF_PIPELINES_TOKEN to a bearer token, or KF_PIPELINES_SA_TOKEN_PATH to a file that contains one. Set
    SSL_CERT_FILE to a file of certificates if the server uses your own authority.
    """
    from pipelines.graph import check_source, write
    from pipelines.submit import Cluster, Submission
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
        submission = Submission("iusp", experiment, title, not no_cache, wait, schedule)
        submit_package(package, Cluster(host, namespace), submission, click.echo)


def _object_name(ctx: click.Context, option: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", value):
        raise click.BadParameter(
            f"{value!r}: must start with a lower-case letter, and have at most 63 lower-case letters, digits and -"
        )
    return value


@main.command()
@changes
@click.option("--name", callback=_object_name, default="iusp-teacher", show_default=True, help="Name of the job.")
@click.option(
    "--claim",
    callback=_object_name,
    required=True,
    help="Persistent volume claim with the project's folder: params.yaml, data/, models/.",
)
@click.option("--nodes", type=click.IntRange(1, 1000), default=1, show_default=True, help="Number of pods.")
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    default=2,
    show_default=True,
    help="Number of processes in each pod; one per GPU.",
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
    """Write a Kubeflow Trainer TrainJob that trains the teacher in several processes."""
    import yaml

    from iusp.io.files import atomic
    from pipelines.graph import MLFLOW_KEYS
    from pipelines.trainjob import Pods, Secrets, manifest

    for change in changes:
        if not change.startswith("kubeflow."):
            raise InputError(f"-S {change}: the job reads params.yaml on the claim; change it there")
    cluster = _config(ctx, changes, image).kubeflow
    pod = cluster.pod_of("teacher")
    secret = cluster.mlflow_secret
    pods = Pods(
        image=cluster.image,
        claim=claim,
        user=cluster.user,
        nodes=nodes,
        processes_per_node=processes,
        cpu=pod.cpu,
        memory=pod.memory,
        accelerators={pod.accelerator.resource: pod.accelerator.count} if pod.accelerator else {},
        node_selector=pod.node_selector,
        tolerations=[toleration.model_dump(exclude_none=True) for toleration in pod.tolerations],
    )
    secrets = Secrets({"MLFLOW_TRACKING_URI": secret}, dict.fromkeys(MLFLOW_KEYS, secret)) if secret else Secrets()
    document = manifest(name, pods, secrets, pod.timeout_seconds)
    with atomic(output) as temporary:
        temporary.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    click.echo(f"{output}: kubectl create --filename {output}")


if __name__ == "__main__":
    main(prog_name="python -m pipelines")
