"""The page on fine-tuning says what the program does: every key of a run, every command, every recipe."""

from pathlib import Path

import pytest

from finetune.config import Config, read_config

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "finetune.md").read_text("utf-8")


def shown(value: object) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return "" if value in (None, (), {}) else f"`{value}`"


@pytest.mark.parametrize("name", list(Config.model_fields))
def test_every_key_has_its_row(name: str) -> None:
    field = Config.model_fields[name]
    default = None if field.default_factory else field.default
    assert f"| `{name}` | {shown(default)} | {' '.join((field.description or '').split())} |" in PAGE.splitlines()


@pytest.mark.parametrize("file", sorted((ROOT / "examples" / "recipes").rglob("*.yaml")), ids=lambda file: file.name)
def test_every_recipe_is_a_configuration(file: Path) -> None:
    assert read_config(file).datasets


@pytest.mark.parametrize("block", PAGE.split("```yaml\n")[1:])
def test_the_page_shows_configurations_that_hold(block: str, tmp_path: Path) -> None:
    (tmp_path / "shown.yaml").write_text(block.split("```")[0], "utf-8")
    assert read_config(tmp_path / "shown.yaml")
