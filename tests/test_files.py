"""Files that are whole or absent, whoever else writes, dies or lays a trap in the directory."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from minimask import files
from minimask.command import cli
from minimask.errors import InputError
from minimask.files import (
    make_output_directory,
    open_regular,
    real_path,
    remove_leftovers,
    replacing,
    write_json,
    write_text,
)
from minimask.training import lock
from tests.systems import needs_posix

TEMPORARY = ".minimask-0123456789abcdef.tmp"


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@needs_posix
def test_two_who_write_one_file_at_once_never_mix_their_bytes(tmp_path):
    path = tmp_path / "a"
    with replacing(path) as first:
        first.write(b"first, ")
        with replacing(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
        first.write(b"whole")
    assert path.read_bytes() == b"first, whole" and names(tmp_path) == ["a"]


def test_many_threads_leave_the_whole_file_of_one_of_them(tmp_path):
    path, wrong = tmp_path / "a", []

    def write(letter):
        for _ in range(20):
            try:
                write_text(path, letter * 10_000)
            except InputError as error:  # pragma: no cover
                wrong.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and names(tmp_path) == ["a"]
    assert len(set(path.read_text())) == 1 and len(path.read_text()) == 10_000


@needs_posix
def test_a_link_planted_at_a_temporary_name_is_not_followed(tmp_path, monkeypatch):
    victim, trap = tmp_path / "victim", tmp_path / f".minimask-{'00' * 8}.tmp"
    victim.write_text("mine")
    trap.symlink_to(victim)
    drawn = iter([bytes(8), b"\1" * 8])
    monkeypatch.setattr("minimask.files.os.urandom", lambda count: next(drawn))
    write_text(tmp_path / "a", "new")
    assert victim.read_text() == "mine" and trap.is_symlink()
    assert (tmp_path / "a").read_text() == "new" and next(drawn, None) is None
    trap.unlink()
    trap.symlink_to(tmp_path / "nowhere")  # one that dangles would be made by following it
    drawn = iter([bytes(8), b"\2" * 8])
    write_text(tmp_path / "a", "newer")
    assert (tmp_path / "a").read_text() == "newer" and not (tmp_path / "nowhere").exists()


def writer_in(directory):
    """A process in the middle of replacing a file."""
    script = textwrap.dedent("""
        import sys, time
        from minimask.files import replacing
        with replacing(sys.argv[1] + "/checkpoint.npz") as file:
            file.write(b"half")
            file.flush()
            print("writing", flush=True)
            time.sleep(600)
    """)
    process = subprocess.Popen([sys.executable, "-c", script, str(directory)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"
    process.stdout.close()
    return process


@needs_posix
def test_the_next_run_removes_what_a_killed_one_left_and_nothing_else(tmp_path):
    theirs = [".checkpoint.npz.tmp", ".minimask-.tmp", ".minimask-0123.tmp", f"{TEMPORARY}.txt", "a.tmp", "x"]
    theirs += [".minimask-0123456789ABCDEF.tmp"]
    for name in theirs:
        (tmp_path / name).write_text("mine")
    folder, link = ".minimask-1111111111111111.tmp", ".minimask-2222222222222222.tmp"
    (tmp_path / folder).mkdir()
    (tmp_path / folder / TEMPORARY).write_text("deeper")
    (tmp_path / link).symlink_to(tmp_path / "x")
    os.mkfifo(tmp_path / ".minimask-3333333333333333.tmp")
    kept = sorted([*theirs, folder, link, ".minimask-3333333333333333.tmp"])
    dead, living = writer_in(tmp_path), writer_in(tmp_path)
    try:
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        assert len(names(tmp_path)) == len(kept) + 2
        make_output_directory(tmp_path)
        (temporary,) = set(names(tmp_path)) - set(kept)  # the living one's
        assert (tmp_path / temporary).read_bytes() == b"half"
    finally:
        living.kill()
        living.wait()
    make_output_directory(tmp_path)
    assert names(tmp_path) == kept and (tmp_path / "x").read_text() == "mine"
    assert names(tmp_path / folder) == [TEMPORARY]


@needs_posix
def test_where_files_have_no_locks_nothing_is_removed(tmp_path, monkeypatch):
    (tmp_path / TEMPORARY).write_text("perhaps a living writer's")

    def unsupported(handle, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("minimask.files.fcntl.flock", unsupported)
    remove_leftovers(tmp_path)
    write_text(tmp_path / "a", "new")
    assert names(tmp_path) == [TEMPORARY, "a"]


@needs_posix
def test_a_temporary_file_that_is_swept_away_between_open_and_lock_is_made_anew(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    flock, swept = fcntl.flock, []

    def slow(handle, operation):
        if not swept:
            swept.extend(tmp_path.glob(".minimask-*"))
            swept[0].unlink()
        flock(handle, operation)

    monkeypatch.setattr("minimask.files.fcntl.flock", slow)
    write_text(tmp_path / "a", "new")
    assert len(swept) == 1 and names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "new"


@needs_posix
def test_links_in_a_circle_are_named_and_others_lead_to_their_file(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(InputError, match=r"/a: is a symbolic link that leads back to itself; remove it"):
        write_text(tmp_path / "a", "new")
    assert names(tmp_path) == ["a", "b"]
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert real_path(tmp_path / "link").name == "file"
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"


@needs_posix
def test_what_is_no_regular_file_is_neither_replaced_nor_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, words in {"pipe": "not a regular file", "folder": "a directory"}.items():
        with pytest.raises(InputError, match=f"{name}: is {words}, so no file"):
            write_text(tmp_path / name, "new")
        with pytest.raises(OSError, match=r"not a regular file|Is a directory"):
            open_regular(tmp_path / name)  # of a pipe, open() would wait for a writer
    with pytest.raises(OSError, match="not a regular file"):
        open_regular("/dev/null")
    assert names(tmp_path) == ["folder", "pipe"]


@needs_posix
def test_a_rename_that_the_disk_does_not_confirm_is_not_called_unchanged(tmp_path, monkeypatch):
    path, fsync, error = tmp_path / "a", os.fsync, errno.EIO
    path.write_text("old")

    def failing(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(error, os.strerror(error))
        fsync(handle)

    monkeypatch.setattr("minimask.files.os.fsync", failing)
    with pytest.raises(
        InputError, match=r"a: is written, but the disk does not confirm it \(Input/output error"
    ):
        write_text(path, "new")
    assert path.read_text() == "new" and names(tmp_path) == ["a"]
    error = errno.EINVAL  # a file system whose directories cannot be synchronised
    write_text(path, "newer")
    assert path.read_text() == "newer"


def on_windows(monkeypatch, module, **more):
    """Let a module, and nothing else, believe that it runs there; more of its `os` may be replaced, too."""
    monkeypatch.setattr(module, "os", SimpleNamespace(**vars(os) | {"name": "nt"} | more))


def denied(*_):
    raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize("failures", [1, 4, 5])
def test_on_windows_a_file_that_a_virus_scanner_has_open_is_waited_for(failures, tmp_path, monkeypatch):
    tries, waited, replace = iter([denied] * failures), [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda *paths: next(tries, replace)(*paths))
    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr("minimask.files.time.sleep", waited.append)
    on_windows(monkeypatch, files)
    (tmp_path / "a").write_text("old")
    if failures > 4:
        with pytest.raises(
            InputError, match=r"cannot be written \(Permission denied\); the file there before"
        ):
            write_text(tmp_path / "a", "new")
    else:
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == ("old" if failures > 4 else "new")
    assert names(tmp_path) == ["a"] and len(waited) == min(failures, 4) and sum(waited) < 2


def test_on_windows_a_directory_is_called_one_though_the_system_says_not_permitted(tmp_path, monkeypatch):
    on_windows(monkeypatch, files, open=denied)
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        open_regular(tmp_path)
    (tmp_path / "a").write_text("kept from us")
    with pytest.raises(PermissionError, match="Permission denied"):
        open_regular(tmp_path / "a")


def test_on_windows_which_removes_no_open_file_a_lock_is_closed_before_it_is_removed(tmp_path, monkeypatch):
    locked, opened, unlink = [], [], Path.unlink
    acquire = lock._acquire
    monkeypatch.setattr(lock, "_acquire", lambda path: opened.append(acquire(path)) or opened[-1])
    monkeypatch.setattr(Path, "unlink", lambda path: denied() if not opened[-1].closed else unlink(path))
    monkeypatch.setitem(
        sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=lambda *a: locked.append(a))
    )
    on_windows(monkeypatch, lock)
    with lock.locked(tmp_path):
        assert locked == [(opened[0].fileno(), 2, 1)] and names(tmp_path) == [lock.NAME]
    assert names(tmp_path) == []
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=denied))
    with pytest.raises(InputError, match="another training is writing"), lock.locked(tmp_path):
        pass


def test_on_windows_a_reader_who_left_is_an_invalid_argument_and_no_full_disk(monkeypatch, capsys):
    on_windows(monkeypatch, cli)
    left, full = (OSError(number, os.strerror(number)) for number in (errno.EINVAL, errno.ENOSPC))
    assert cli._unwritten(SimpleNamespace(error=left)) == 141 and not capsys.readouterr().err
    assert cli._unwritten(SimpleNamespace(error=full)) == 2 and "No space left" in capsys.readouterr().err


def test_a_path_with_nul_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"a\\x00b: is not a file name"):
        write_text(tmp_path / "a\0b", "new")
    with pytest.raises(OSError, match="not a file name"):
        open_regular(tmp_path / "a\0b")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may enter any directory")
def test_a_directory_that_may_not_be_entered_is_one_line(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o600)
    with pytest.raises(InputError, match=r"new: cannot be used \(Permission denied\); choose another"):
        write_text(tmp_path / "closed" / "in" / "new", "text")


def test_a_name_that_is_too_long_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"aaa: cannot be used \(.*too long") as error:
        write_text(tmp_path / ("a" * 5000), "new")
    assert "\n" not in str(error.value)


def test_a_file_name_that_is_no_utf8_survives_in_json(tmp_path):
    write_json(tmp_path / "a.json", {"file_name": "caf\udce9.png", "class": "é"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "é" in text and json.loads(text) == {"file_name": "caf\udce9.png", "class": "é"}
