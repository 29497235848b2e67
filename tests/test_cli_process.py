"""The command as a process: signals, streams that are closed or broken, names and texts of any kind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli_data import command, make_dataset

ROOT = Path(__file__).parent.parent
FEW = ["--set", "train.steps=2", "--set", "data.crop=48", "--set", "train.batch_size=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A directory with a data set and, in run/, a checkpoint."""
    directory = tmp_path_factory.mktemp("data")
    make_dataset(directory)
    process = command("train", *source(directory), *FEW, "--output", directory / "run")
    assert process.wait() == 0, process.communicate()
    process.stdout.close(), process.stderr.close()
    return directory


def source(directory):
    return ["--data", directory / "train.json", "--images", directory / "images"]


def finished(process, timeout=60):
    out, err = process.communicate(timeout=timeout)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def python(code, *arguments, **options):
    """The command as `entry_point` runs it, after `code`."""
    code = f"{code}\nimport sys; from minimask.command.cli import entry_point; entry_point()"
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], **options)


# ------------------------------------------------------------------------------------------------ signals


def test_the_second_ctrl_c_waits_for_no_batch(tmp_path):
    code = "import time; from minimask.data import Shapes\n"
    code += "Shapes.__getitem__ = lambda self, index: (print('loading', flush=True), time.sleep(300))"
    process = python(code, "train", "--data", "shapes", "--output", tmp_path / "run")
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    assert "finishing the step" in process.stderr.readline() + process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert finished(process) == (130, "", "minimask: interrupted\n")


@pytest.mark.parametrize("start", [["-m", "minimask"], ["-c", "import sys; sys.argv[0] = 'bin/minimask'"]])
def test_ctrl_c_while_numpy_is_imported_ends_the_program_without_a_traceback(start, tmp_path):
    (tmp_path / "numpy.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    start[-1] += "\nimport minimask" if start[0] == "-c" else ""
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, *start, "info"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "minimask: interrupted\n")


@pytest.mark.parametrize("arguments, status", [(["--version"], 130), (["trian"], 2)])
def test_ctrl_c_while_the_program_ends_shows_no_traceback(arguments, status):
    code = "import atexit, os, signal; atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))"
    assert finished(python(code, *arguments))[0] == status


def test_ctrl_c_while_the_first_one_is_answered_shows_no_traceback():
    code = """
import os, signal
from minimask.command import cli, commands

def interrupted(*_):
    os.kill(os.getpid(), signal.SIGINT)
    raise KeyboardInterrupt

commands.info = cli.one_line = interrupted
"""
    assert finished(python(code, "info")) == (130, "", "")


def test_importing_the_library_leaves_signals_and_streams_alone():
    code = "import signal, sys; before = sys.stdout, sys.stderr, signal.getsignal(signal.SIGINT)\n"
    code += "import minimask.command.cli as cli; cli.main(['--version'])\n"
    code += "assert before == (sys.stdout, sys.stderr, signal.getsignal(signal.SIGINT))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
