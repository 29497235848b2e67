"""The command ``minimask``: its arguments, what each subcommand does, and the demo.

Imports every other room, and none imports it. Begin with `cli.py`, the arguments; each subcommand leads to a
function of `commands.py`. `sources.py` turns them into the configuration (``--set``) and the data sets.
"""
