"""``python -m minimask``: the same as the command ``minimask``."""

from minimask.command.cli import entry_point

entry_point()
