"""The command as a process: signals, streams that are closed or broken, names and texts of any kind."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minimask.data import read_coco
from minimask.weights.checkpoint import load_checkpoint
from tests.cli_data import command, make_dataset
from tests.systems import needs_ctrl_c, needs_full, needs_posix, needs_signals

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


def slow(value, *marks):
    return pytest.param(value, marks=[pytest.mark.slow, *marks])


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


@needs_signals
def test_the_second_ctrl_c_waits_for_no_batch(tmp_path):
    code = "import time; from minimask.data import Shapes\n"
    code += "Shapes.__getitem__ = lambda self, index: (print('loading', flush=True), time.sleep(300))"
    process = python(code, "train", "--data", "shapes", "--output", tmp_path / "run")
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    assert "finishing the step" in process.stderr.readline() + process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert finished(process) == (130, "", "minimask: interrupted\n")


@needs_ctrl_c
@pytest.mark.parametrize("start", [["-m", "minimask"], ["-c", "import sys; sys.argv[0] = 'bin/minimask'"]])
def test_ctrl_c_while_numpy_is_imported_ends_the_program_without_a_traceback(start, tmp_path):
    (tmp_path / "numpy.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
    start[-1] += "\nimport minimask" if start[0] == "-c" else ""
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, *start, "info"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "minimask: interrupted\n")


@needs_ctrl_c
@pytest.mark.parametrize("arguments, status", [(["--version"], 130), (["trian"], 2)])
def test_ctrl_c_while_the_program_ends_shows_no_traceback(arguments, status):
    code = "import atexit, signal; atexit.register(lambda: signal.raise_signal(signal.SIGINT))"
    assert finished(python(code, *arguments))[0] == status


def test_ctrl_c_while_the_first_one_is_answered_shows_no_traceback():
    code = """
import signal
from minimask.command import cli, commands

def interrupted(*_):
    signal.raise_signal(signal.SIGINT)
    raise KeyboardInterrupt

commands.info = cli.one_line = interrupted
"""
    assert finished(python(code, "info")) == (130, "", "")


def test_importing_the_library_leaves_signals_and_streams_alone():
    code = "import signal, sys; before = sys.stdout, sys.stderr, signal.getsignal(signal.SIGINT)\n"
    code += "import minimask.command.cli as cli; cli.main(['--version'])\n"
    code += "assert before == (sys.stdout, sys.stderr, signal.getsignal(signal.SIGINT))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# ------------------------------------------------------------------------------------------------ streams


def train(data, output, **options):
    return command("train", *source(data), "--val", data / "train.json", *FEW, "--output", output, **options)


@pytest.mark.slow
@needs_posix
@pytest.mark.parametrize("encoding", ["cp1252:strict", *map(slow, ("ascii:strict", "utf-8:strict"))])
def test_no_encoding_and_no_name_of_a_directory_ends_work_that_is_done(encoding, data, tmp_path):
    output = tmp_path / os.fsdecode("训练 \x1b[31m \n x".encode() + b"\xe9")
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    status, out, err = finished(train(data, output, env=environment, encoding=encoding.split(":")[0]))
    assert status == 0, err
    assert "AP50" in out and (output / "metrics.json").exists() and (output / "curves.png").exists()
    assert "\\x1b[31m \\n x\\xe9" in out and "\x1b" not in out + err
    arguments = ["predict", data / "images" / "1.png", "--weights", output / "checkpoint.npz"]
    options = {"env": environment, "encoding": encoding.split(":")[0]}
    status, out, err = finished(command(*arguments, "--output", output / "found", **options))
    assert status == 0 and "1-instances.png" in out, err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_file_name_that_is_no_utf8_keeps_its_results_and_reads_back(data, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes((data / "images" / "1.png").read_bytes())
    weights = ["--weights", data / "run" / "checkpoint.npz"]
    arguments = ["predict", tmp_path / name, *weights, "--json", "--output", tmp_path / "out"]
    status, out, err = finished(command(*arguments))
    assert status == 0 and "caf\\xe9.png: " in out, err
    assert read_coco(tmp_path / "out" / "predictions.json", tmp_path)[0].image.shape == (3, 64, 64)
    status, _, err = finished(command("predict", tmp_path / f"no {name}", *weights, "--output", tmp_path))
    assert status == 2 and err.count("\n") == 1 and "no caf\\xe9.png" in err


@pytest.mark.slow
@needs_posix
@pytest.mark.parametrize(
    "closing", ["2>&-", "<&- >&- 2>&-", slow(">&-"), slow(">/dev/full 2>/dev/full", needs_full)]
)
def test_a_stream_that_is_closed_or_full_ends_nothing(closing, data, tmp_path):
    arguments = [*source(data), "--val", data / "train.json", *FEW, "--output", tmp_path / "run"]
    line = " ".join(map(shlex.quote, [sys.executable, "-m", "minimask", "train", *map(str, arguments)]))
    done = subprocess.run(f"{line} {closing}", shell=True, capture_output=True, text=True)
    assert done.returncode == (2 if "full" in closing else 0), done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert load_checkpoint(tmp_path / "run" / "checkpoint.npz").step == 2
    assert {"metrics.json", "report.html", "curves.png"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }
    if closing == "2>&-":
        assert "AP50" in done.stdout


@needs_full
def test_a_full_disk_behind_standard_output_is_one_line_and_status_2():
    with Path("/dev/full").open("wb") as full:
        status, _, err = finished(command("info", stdout=full))
    assert status == 2
    assert err.startswith("minimask: standard output: cannot be written (No space") and err.count("\n") == 1


def test_a_reader_that_leaves_early_does_not_end_a_training(data, tmp_path):
    process = train(data, tmp_path / "run")
    process.stdout.close()
    process.stderr.readline()
    process.stderr.close()
    assert process.wait(timeout=60) == 141
    assert (tmp_path / "run" / "metrics.json").exists()


def test_what_libraries_write_to_standard_error_is_not_shown_but_with_debug(data, tmp_path):
    code = "import os, numpy, warnings, minimask.data.images as p; read = p.decode\n"
    code += "lines = lambda: (os.write(2, b'TIFFFillStrip: error'), warnings.warn('old', stacklevel=1))\n"
    code += "p.decode = lambda path: (lines(), numpy.float32(1e38) * numpy.float32(1e38), read(path))[-1]"
    arguments = ["predict", data / "images" / "1.png", "--weights", data / "run" / "checkpoint.npz"]
    status, _, err = finished(python(code, *arguments, "--output", tmp_path))
    ours = [line for line in err.splitlines() if line.startswith(("minimask: note: ", "predicting 1/1"))]
    assert status == 0 and err.splitlines() == ours and ours[-1].startswith("predicting 1/1")
    status, _, err = finished(python(code, *arguments, "--output", tmp_path, "--debug"))
    assert status == 0 and "TIFFFillStrip" in err and "UserWarning: old" in err


# ------------------------------------------------------------------------------------------------ drawing


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["bogus", *map(slow, ("module://not_installed.backend", "gtk3agg"))])
def test_files_are_drawn_whatever_backend_the_environment_names(backend, data, tmp_path):
    environment = os.environ | {"MPLBACKEND": backend}
    status, _, err = finished(train(data, tmp_path / "run", env=environment))
    assert status == 0 and "not drawn" not in err and (tmp_path / "run" / "curves.png").exists(), err
    arguments = [data / "images" / "1.png", "--weights", data / "run" / "checkpoint.npz"]
    status, _, err = finished(command("predict", *arguments, "--output", tmp_path / "out", env=environment))
    assert status == 0 and (tmp_path / "out" / "1-instances.png").exists(), err
    few = ["--boxes", "500", "--stride", "32", "--output", tmp_path / "misalign"]
    status, _, err = finished(command("misalign", *few, env=environment))
    assert status == 0 and (tmp_path / "misalign" / "misalign-bins.svg").exists(), err


def test_drawing_in_python_keeps_a_good_backend_and_needs_none(tmp_path):
    code = "import os, numpy as np; from minimask.results.visualize import loss_curves\n"
    code += "loss_curves(dict(step=np.arange(3), loss=np.ones(3), loss_mask=np.ones(3)), 'losses.png')\n"
    code += "import matplotlib; print(os.environ['MPLBACKEND'], matplotlib.rcParams['backend'])"
    for backend, found in (("svg", "svg"), ("bogus", "")):
        environment = os.environ | {"MPLBACKEND": backend, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{backend} {found}") and (tmp_path / "losses.png").exists()


@pytest.mark.slow
@needs_posix
def test_without_a_home_and_a_temporary_directory_the_work_is_done_and_one_note_says_what_is_not(
    data, tmp_path
):
    code = "import tempfile; tempfile.mkdtemp = tempfile._get_default_tempdir = None\n"
    code += "def none(*a, **k): raise FileNotFoundError(2, 'No usable temporary directory found')\n"
    code += "tempfile.mkdtemp = tempfile._get_default_tempdir = tempfile.TemporaryDirectory = none"
    environment = os.environ | {"HOME": "/proc/nobody", "XDG_CONFIG_HOME": "/proc/nobody"}
    environment |= {"XDG_CACHE_HOME": "/proc/nobody"}
    environment.pop("MPLCONFIGDIR", None)
    arguments = [*source(data), "--val", data / "train.json", *FEW, "--output", tmp_path / "run"]
    status, out, err = finished(python(code, "train", *arguments, env=environment))
    assert status == 0 and "AP50" in out, err
    lines = [line for line in err.splitlines() if not line.startswith(("training", "evaluating"))]
    notes = [line for line in lines if "MiB" not in line]
    assert len(notes) == 1 and notes[0].startswith("minimask: note: curves.png is not drawn ("), err
    status, out, err = finished(train(data, tmp_path / "other", env=environment))  # HOME alone is missing
    assert status == 0 and "not drawn" not in err and "matplotlib" not in err.lower(), err


def test_the_evaluation_comes_before_the_drawing_and_is_told_though_that_fails(data, tmp_path):
    code = "import minimask.results.visualize as v\n"
    code += "def loss_curves(*a): raise RuntimeError('no\\nfont')\nv.loss_curves = loss_curves"
    arguments = [*source(data), "--val", data / "train.json", *FEW, "--output", tmp_path / "run"]
    status, out, err = finished(python(code, "train", *arguments))
    assert status == 0 and "AP50" in out
    assert err.endswith("minimask: note: curves.png is not drawn (no font); everything else is done\n")
