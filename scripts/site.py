"""What MkDocs cannot do itself: `mkdocs.yml` names this module as a hook.

Two pages are generated from the code, and pages outside docs/ become part of the site. A link to any other file of the
repository becomes plain text on the site, because the site does not contain that file.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from iusp.cli.main import main as iusp
from iusp.config.params import Config
from pipelines.__main__ import main as pipelines

ROOT = Path(__file__).parents[1]
# Pages outside docs/, and where the site has them.
ADDED = {
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "components/README.md": "reference/components.md",
}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!\w+:|#)([^)#]+)(#[^)]*)?\)")
WIDTH = 100  # characters of a line of `--help`


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside docs/ and the generated ones."""
    for source, place in ADDED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=relink(text, source, place)))
    files.append(File.generated(config, "reference/settings.md", content=settings()))
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point the links of a page of docs/ to the site's pages."""
    place = page.file.src_uri
    return relink(markdown, f"docs/{place}", place) if (ROOT / "docs" / place).exists() else markdown


def relink(text: str, source: str, place: str) -> str:
    """Return a page with the links that it needs on the site.

    Args:
        text: the page, in Markdown.
        source: path of the page in the repository.
        place: path of the page on the site.

    Raises:
        FileNotFoundError: a link names a file that the repository does not have.
    """

    def replaced(match: re.Match[str]) -> str:
        label, link, anchor = match.groups()
        target = PurePosixPath(os.path.normpath(PurePosixPath(source).parent / link))
        if str(target) in ADDED:
            there = ADDED[str(target)]
        elif target.parts[0] == "docs":
            there = str(target.relative_to("docs"))
        elif (ROOT / target).exists():
            return label
        else:
            raise FileNotFoundError(f"{source}: the link {link} leads nowhere")
        return f"[{label}]({os.path.relpath(there, PurePosixPath(place).parent)}{anchor or ''})"

    return LINK.sub(replaced, text)


def settings() -> str:
    """Return the page about params.yaml, from its schema."""
    schema = Config.model_json_schema(by_alias=True)
    sections = []
    for name, entry in schema["properties"].items():
        (_, _, text), *settings = _rows(entry, "", schema["$defs"])
        rows = "".join(f"| `{key}` | {kind} | {meaning} |\n" for key, kind, meaning in settings)
        sections.append(f"\n## {name}\n\n{text}\n\n| key | value | meaning |\n|---|---|---|\n{rows}")
    head = "# Settings\n\nEvery key of `params.yaml`. `iusp config --schema` prints the same as JSON Schema.\n"
    return head + "".join(sections)


def _rows(entry: dict[str, Any], key: str, models: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield key, value and meaning of a setting, then those of the settings below it."""
    options = entry.get("anyOf", [entry])
    text = " ".join(entry.get("description", "").split()).replace("|", "\\|")
    yield key, " or ".join(_kind(option) for option in options), text
    for option in options:
        parents = [key] if key else []
        if "additionalProperties" in option:
            parents.append("NAME")
        for name, child in (_model(option, models) or {}).get("properties", {}).items():
            yield from _rows(child, ".".join([*parents, name]), models)


def _model(entry: dict[str, Any], models: dict[str, Any]) -> dict[str, Any] | None:
    """Return the model that a setting, or each entry of it, has to follow."""
    each = entry.get("additionalProperties")
    reference = (each if isinstance(each, dict) else entry).get("$ref", "")
    return models.get(reference.removeprefix("#/$defs/"))


def _kind(entry: dict[str, Any]) -> str:
    """Return what values a setting takes."""
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    if "const" in entry:
        return f"`{entry['const']}`"
    if "$ref" in entry or entry.get("type") == "object":
        return "section"
    if entry.get("type") == "array":
        return f"list of {_kind(entry.get('items', {}))}"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = ", ".join(f"{sign} {entry[name]}" for name, sign in bounds.items() if name in entry)
    return f"{entry.get('type', 'any')} {limits}".strip()


def commands() -> str:
    """Return the page about the commands, from their `--help`."""
    head = "# Commands\n\nWhat `--help` prints of every command. All read `params.yaml` of the working folder.\n"
    pages = (
        part for command, name in ((iusp, "iusp"), (pipelines, "python -m pipelines")) for part in _help(command, name)
    )
    return head + "".join(pages)


def _help(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH)
    yield f"\n{'##' if parent is None else '###'} {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            yield from _help(command.commands[child], child, context)
