"""The settings that `iusp --params` names, for all groups of commands."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from iusp.config.params import Config


def load_config(ctx: click.Context) -> "Config":
    """Read the settings file that `iusp --params` names.

    Raises:
        InputError: the file is missing or a setting is wrong.
    """
    from iusp.config.params import load

    return load(ctx.obj)
