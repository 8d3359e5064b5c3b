"""The settings that `iusp --params` names, for all groups of commands."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from iusp.config.params import Config, GateSettings, RegistrySettings


def load_config(ctx: click.Context) -> "Config":
    """Read the settings file that `iusp --params` names.

    Raises:
        InputError: the file is missing or a setting is wrong.
    """
    from iusp.config.params import load

    return load(ctx.obj)


def load_registry_settings(ctx: click.Context) -> "RegistrySettings":
    """Read only the section that finds the registry, so that a mistake in another one blocks no registry command.

    Raises:
        InputError: the file is missing or a setting of the section is wrong.
    """
    from iusp.config.params import RegistrySettings, load_sections

    return load_sections(ctx.obj, RegistrySettings)


def load_gate_settings(ctx: click.Context) -> "GateSettings":
    """Read only the sections that the promotion gate needs.

    Raises:
        InputError: the file is missing or a setting of these sections is wrong.
    """
    from iusp.config.params import GateSettings, load_sections

    return load_sections(ctx.obj, GateSettings)
