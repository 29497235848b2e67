"""Checkpoints and the files under them: exact, atomic, and plain about damage."""

import errno
import os
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimask import nn
from minimask.errors import InputError
from minimask.files import check_output_directory, make_output_directory, replacing, write_json
from minimask.weights.checkpoint import (
    Checkpoint,
    environment_changes,
    fit,
    load_checkpoint,
    save_checkpoint,
)


def a_checkpoint(step=3, size=5):
    rng = np.random.default_rng(0)
    return Checkpoint(
        parameters={"body.weight": rng.normal(size=(size, 3)).astype(np.float32), "body.bias": np.zeros(0)},
        momentum={"body.weight": rng.normal(size=(size, 3)).astype(np.float32)},
        step=step,
        seed=11,
        config={"train": {"steps": 9, "learning_rate": 0.1}},
        class_names=["nucleus", "Zellkern ü"],
        category_ids=[1, 90],
        data={"images": "abc"},
        environment={"threads": "2"},
    )


def assert_same(a, b):
    for group in ("parameters", "momentum"):
        left, right = getattr(a, group), getattr(b, group)
        assert list(left) == list(right)
        for name in left:
            assert left[name].dtype == right[name].dtype
            np.testing.assert_array_equal(left[name], right[name], strict=True)
    for name in ("step", "seed", "config", "class_names", "category_ids", "data", "environment"):
        assert getattr(a, name) == getattr(b, name)


def test_a_checkpoint_comes_back_exactly_and_equal_content_gives_equal_bytes(tmp_path):
    for name in ("a.npz", "b.npz"):
        save_checkpoint(tmp_path / name, a_checkpoint())
        assert_same(load_checkpoint(tmp_path / name), a_checkpoint())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_numpy_opens_a_checkpoint_without_pickle(tmp_path):
    save_checkpoint(tmp_path / "a.npz", a_checkpoint())
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {
            "metadata",
            "parameters/body.weight",
            "parameters/body.bias",
            "momentum/body.weight",
        }


def test_the_new_file_has_the_mode_of_the_umask_and_a_link_stays_a_link(tmp_path):
    target, link = tmp_path / "real.npz", tmp_path / "link.npz"
    save_checkpoint(target, a_checkpoint())
    link.symlink_to(target)
    before = os.umask(0o027)
    try:
        save_checkpoint(link, a_checkpoint(step=4))
    finally:
        os.umask(before)
    assert link.is_symlink() and load_checkpoint(target).step == 4
    assert target.stat().st_mode & 0o777 == 0o640


@settings(max_examples=200)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path_factory, place, bit):
    folder = tmp_path_factory.getbasetemp()
    path, good = folder / "flipped.npz", folder / "good.npz"
    save_checkpoint(good, a_checkpoint())
    content = bytearray(good.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    try:
        loaded = load_checkpoint(path)
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert_same(loaded, a_checkpoint())


def test_a_file_cut_anywhere_is_refused(tmp_path):
    save_checkpoint(tmp_path / "good.npz", a_checkpoint())
    content = (tmp_path / "good.npz").read_bytes()
    for length in range(0, len(content), 97):
        (tmp_path / "cut.npz").write_bytes(content[:length])
        with pytest.raises(InputError, match=r"cut\.npz: damaged or not a checkpoint .*use another copy"):
            load_checkpoint(tmp_path / "cut.npz")


def test_foreign_files_are_refused_by_name(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.savez(tmp_path / "pickled.npz", a=np.array([{}], dtype=object))
    np.savez(tmp_path / "later.npz", metadata=np.array('{"format": 2}'))
    np.savez(tmp_path / "json.npz", metadata=np.array("[1]"))
    (tmp_path / "folder.npz").mkdir()
    for name, words in {
        "text": "damaged or not a checkpoint",
        "other": "not a checkpoint of minimask",
        "pickled": "is no array",
        "later": "has checkpoint format 2, this minimask reads 1",
        "json": "not a checkpoint of minimask",
        "missing": "No such file",
        "folder": "Is a directory",
    }.items():
        with pytest.raises(InputError) as caught:
            load_checkpoint(tmp_path / f"{name}.npz")
        assert str(caught.value).startswith(str(tmp_path / f"{name}.npz")) and words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_model_names_file_and_entry_and_changes_nothing():
    layer = nn.Linear(3, 4, np.random.default_rng(0))
    before = layer.state_dict()["weight"].copy()
    other = Checkpoint({"weight": np.ones((4, 2), np.float32), "bias": np.ones(4, np.float32)})
    with pytest.raises(InputError, match=r"^some\.npz: the weights are of another model: .*weight.*\(4, 2\)"):
        fit(other, "some.npz", layer)
    np.testing.assert_array_equal(layer.state_dict()["weight"], before)


def test_a_change_of_threads_is_told_and_a_change_of_python_is_not():
    then, now = {"threads": "2", "python": "3.11"}, {"threads": "1", "python": "3.12"}
    assert environment_changes(then, now) == ["threads 2 then, 1 now"]


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    save_checkpoint(path, a_checkpoint())

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        InputError, match=r"a\.npz: cannot be written \(No space left on device\); the file there"
    ):
        save_checkpoint(path, a_checkpoint(step=4))
    assert load_checkpoint(path).step == 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_a_write_that_the_system_cuts_off_leaves_the_old_file(tmp_path):
    """A real short write: the limit on file size stops the archive in the middle of an array."""
    resource = pytest.importorskip("resource", reason="no limits on file size on this system")
    path = tmp_path / "a.npz"
    save_checkpoint(path, a_checkpoint())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(InputError, match=r"cannot be written \(File too large"):
            save_checkpoint(path, a_checkpoint(step=4, size=100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_checkpoint(path).step == 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_a_kill_while_saving_leaves_a_whole_checkpoint(tmp_path):
    script = textwrap.dedent("""
        import sys
        import numpy as np
        from minimask.weights.checkpoint import Checkpoint, save_checkpoint
        array = np.arange(300_000, dtype=np.float64)
        for step in range(10**6):
            save_checkpoint(sys.argv[1], Checkpoint({"weight": array + step}, step=step))
            print(step, flush=True)
    """)
    path = tmp_path / "a.npz"
    for delay in (0.0, 0.003, 0.007, 0.013):
        process = subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE)
        process.stdout.readline()  # the first save is done; kill somewhere in a later one
        time.sleep(delay)
        process.kill()
        process.wait()
        process.stdout.close()
        loaded = load_checkpoint(path)
        np.testing.assert_array_equal(loaded.parameters["weight"], np.arange(300_000) + loaded.step)


def test_an_interruption_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "text"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_json_never_holds_nan(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_an_output_directory_that_is_a_file_or_lies_in_one_is_refused_before_it_is_made(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file", "file/below", "file/below/further"):
        with pytest.raises(InputError, match=r"--output .*file.* is a file, not a directory"):
            check_output_directory(tmp_path / name)
    check_output_directory(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    assert make_output_directory(tmp_path / "a" / "b").is_dir()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_directory_without_the_right_to_write_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="may not be written to"):
        check_output_directory(tmp_path / "a")
