"""The generated pages of the site, and its links."""

import pytest

from scripts.site import commands, relink, settings

pytestmark = pytest.mark.integration


def test_the_settings_page_has_every_key_with_its_values() -> None:
    page = settings()
    assert "| `training.epochs` | integer ≥ 1 |" in page.split("## teacher")[1].split("## distillation")[0]
    assert "| `NAME.seeds` | list of integer" in page.split("## students")[1].split("## evaluation")[0]
    assert "| `gate.budgets.macs` | integer ≥ 1 |" in page
    assert "`embedded`, `sonyc-ust`" in page


def test_the_commands_page_has_the_help_of_every_command() -> None:
    page = commands()
    assert "### iusp promote\n\n```text\nUsage: iusp promote [OPTIONS] VERSION" in page
    assert "### python -m pipelines submit\n" in page


def test_links_point_to_the_sites_pages() -> None:
    text = "[data](data.md#a) [safe](../SECURITY.md) [code](../docker/Dockerfile) [web](https://example.org/)"
    there = "[data](data.md#a) [safe](project/security.md) code [web](https://example.org/)"
    assert relink(text, "docs/x.md", "x.md") == there
    assert relink("[d](docs/data.md)", "SECURITY.md", "project/security.md") == "[d](../data.md)"
    assert relink("[c](../components/README.md)", "docs/x.md", "x.md") == "[c](reference/components.md)"


def test_a_link_that_leads_nowhere_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match=r"docs/x.md: the link ../absent.py leads nowhere"):
        relink("[x](../absent.py)", "docs/x.md", "x.md")
