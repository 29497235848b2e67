"""What some tests need of the operating system: where that is missing, they are skipped by name."""

import os
import signal
import tempfile
from pathlib import Path

import pytest


def _makes_links() -> bool:
    with tempfile.TemporaryDirectory() as directory:
        try:
            (Path(directory) / "link").symlink_to("nowhere")
        except OSError:  # Windows: only administrators may, and those who develop
            return False
    return True


def _needs(what: bool, reason: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not what, reason=reason)


needs_posix = _needs(os.name != "nt", "Windows has no modes, locks, shell or names of this kind")
needs_signals = _needs(os.name != "nt", "Windows cannot send a signal to another process")
needs_ctrl_c = _needs(
    signal.getsignal(signal.SIGINT) != signal.SIG_IGN,
    "SIGINT is ignored, as a shell does for what runs behind &",
)
needs_links = _needs(_makes_links(), "this user may not make symbolic links")
needs_pipes = _needs(hasattr(os, "mkfifo"), "no named pipes here")
needs_full = _needs(Path("/dev/full").exists(), "no /dev/full here, a disk without room")
