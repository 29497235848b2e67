"""README.md and docs/commands.md: Python that runs, commands that exist, pictures that load fast."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from minimask.command import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = README + (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = "".join(re.findall(r"```bash\n(.*?)```", PAGES, re.DOTALL))
COMMANDS = re.findall(r"\bminimask [a-z].*", SHELL)
PICTURES = re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", README)


def test_there_is_something_to_test():
    assert len(PYTHON) == 2 and len(COMMANDS) > 10 and len(PICTURES) == 2


def test_an_image_becomes_a_picture_of_its_masks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(PYTHON[0], {})
    assert int(capsys.readouterr().out.split()[0]) == 59  # as the caption of the first picture says
    assert "find 59, 18, 7 and 41" in README
    with Image.open("found.png") as picture:
        assert picture.width > 320  # the image's own width: small ones are enlarged


def test_one_image_gives_gradients():
    names: dict = {}
    exec(PYTHON[1], names)
    assert set(names["losses"]) >= {"loss_classifier", "loss_box_reg", "loss_mask"}
    parameters = dict(names["model"].named_parameters())
    assert all(parameter.grad is not None for parameter in parameters.values())


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_understood(line):
    _, *arguments = shlex.split(line, comments=True)
    cli._parser().parse_args(arguments)


@pytest.mark.parametrize(("alt", "path"), PICTURES, ids=lambda text: text[-20:])
def test_pictures_are_small_and_described(alt, path):
    assert (ROOT / path).stat().st_size < 300_000
    assert len(alt) > 60
