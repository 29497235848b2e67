"""Checkpoints and the files under them: exact, atomic, and plain about damage."""

import dataclasses
import errno
import io
import json
import os
import re
import subprocess
import sys
import textwrap
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimask import nn
from minimask.errors import InputError
from minimask.files import check_output_directory, make_output_directory, replacing, write_json
from minimask.models.detector import load_detector
from minimask.training.optim import SGD
from minimask.weights.archive import Archive
from minimask.weights.checkpoint import (
    Checkpoint,
    CheckpointFile,
    environment_changes,
    fit,
    load_checkpoint,
    save_checkpoint,
)
from minimask.weights.schema import check_classes
from tests.hostile import array_of, entries_of, text_entry, zip_of
from tests.systems import needs_links, needs_pipes, needs_posix


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


@needs_posix
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


@settings(max_examples=200, deadline=None)
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
        "pickled": "is not an array",
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


def refusal(path, content=None):
    """The line that a file, or one of this content, is refused with."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_checkpoint(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and text.isprintable()
    return text.removeprefix(f"{path}: ")


@pytest.fixture
def entries(tmp_path):
    """The members of a good checkpoint."""
    save_checkpoint(tmp_path / "good.npz", a_checkpoint())
    return entries_of((tmp_path / "good.npz").read_bytes())


def header(dtype="'<f4'", shape="(5, 3)", order="False"):
    return f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    "text, words",
    [
        ("(", "is not an array"),
        ("", "is not an array"),
        ("-" * 3000 + "1", "is not an array"),
        ("[" * 9000, "is not an array"),
        ("{[]: 1}", "is not an array"),
        (header(dtype="()"), r"is not an array of floats, but of dtype \(\)"),
        (header(shape=f"({10**30},)"), "is not an array"),
        (header(shape="(-1,)"), "is not an array"),
        (header(shape="(5, 3.0)"), "is not an array"),
        (header(order="1"), "is not an array"),
        (header(dtype="'|O'"), r"is not an array of floats, but of dtype '\|O'"),
        (header(dtype="'<M8[D]'"), "but of dtype '<M8"),
        (header(dtype="'<c8'"), "but of dtype '<c8'"),
        (header(dtype="'<i4'"), "but of dtype '<i4'"),
        (header(dtype="[('a', '<f4')]"), r"but of dtype \[\('a', '<f4'\)\]"),
        (header(dtype="'<U15'", shape="()"), "is not an array of floats, but of dtype <U15"),
        (header(shape="(5, 4)"), r"has 60 bytes, not those of shape \(5, 4\)"),
        (header(shape=f"({10**18},)"), "has 60 bytes, not those of shape"),
        (header(shape=f"(0, {2**62})"), "has 60 bytes, not those of shape"),
        (header(shape="(" + ", ".join("1" * 90) + ")"), "has 60 bytes, not those of shape"),
    ],
)
def test_an_array_whose_header_does_not_fit_its_bytes_is_refused_by_name(text, words, tmp_path, entries):
    entries["parameters/body.weight.npy"] = array_of(text, bytes(60))
    line = refusal(tmp_path / "a.npz", zip_of(entries))
    assert re.search(f"entry 'parameters/body.weight.*{words}.*use another copy", line), line


@pytest.mark.parametrize("shape", [f"(0, {2**62})", f"(0, {2**40}, {2**40})"])
def test_an_array_of_nothing_that_numpy_could_not_hold_is_refused(shape, tmp_path, entries):
    entries["parameters/body.weight.npy"] = array_of(header(shape=shape))
    assert "has 0 bytes, not those of shape" in refusal(tmp_path / "a.npz", zip_of(entries))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(value, tmp_path):
    for group in ("parameters", "momentum"):
        good = a_checkpoint()
        getattr(good, group)["body.weight"][3, 1] = value
        save_checkpoint(tmp_path / "a.npz", good)
        assert f"{group}/body.weight holds numbers that are not finite" in refusal(tmp_path / "a.npz")
    wide = np.full((5, 3), 1e39)  # finite, but not in the float32 of which models are
    save_checkpoint(tmp_path / "a.npz", Checkpoint({"w": wide}))
    assert "parameters/w holds numbers" in refusal(tmp_path / "a.npz")


def test_arrays_of_any_order_and_byte_order_come_back_exactly(tmp_path):
    array = np.arange(12, dtype=np.float64).reshape(3, 4)
    arrays = {"c": array, "f": np.asfortranarray(array), "big": array.astype(">f4"), "none": np.zeros((0, 4))}
    arrays |= {
        "half": array.astype(np.float16),
        "one": np.array(3.5),
        "view": array[::2, ::-1],
    }
    save_checkpoint(tmp_path / "a.npz", Checkpoint(arrays))
    for name, loaded in load_checkpoint(tmp_path / "a.npz").parameters.items():
        np.testing.assert_array_equal(loaded, arrays[name], strict=True)


METADATA = {
    "step of infinity": (dict(step=float("inf")), "step must be a whole number from 0 to 2^53, is Infinity"),
    "step below 0": (dict(step=-7), "step must be a whole number from 0 to 2^53, is -7"),
    "step beyond": (dict(step=2**53 + 1), "step must be a whole number"),
    "step that is true": (dict(step=True), "step must be a whole number from 0 to 2^53, is true"),
    "step as text": (dict(step="3"), 'step must be a whole number from 0 to 2^53, is "3"'),
    "step with a fraction": (dict(step=3.0), "step must be a whole number from 0 to 2^53, is 3.0"),
    "seed below 0": (dict(seed=-1), "seed must be a whole number from 0 to 2^63 - 1, is -1"),
    "config a list": (dict(config=[]), "config must be the sections of a configuration, is []"),
    "config without sections": (dict(config={"train": 3}), "there is no option train"),
    "rate beyond floats": (
        dict(config={"train": {"learning_rate": 10**400}}),
        "train.learning_rate must be a finite number, is 1000",
    ),
    "rate of infinity": (
        dict(config={"train": {"learning_rate": float("inf")}}),
        "train.learning_rate must be a finite number, is Infinity",
    ),
    "names that are numbers": (dict(class_names=[1, 2]), "class_names must be a list of different names"),
    "names that are equal": (dict(class_names=["a", "a"]), "class_names must be a list of different names"),
    "names with a line break": (dict(class_names=["a\n", "b"]), "class_names must be a list"),
    "names that are surrogates": (dict(class_names=["\ud800", "b"]), "class_names must be a list"),
    "an empty name": (dict(class_names=["", "b"]), "class_names must be a list of different names"),
    "names as one text": (dict(class_names="ab"), "class_names must be a list of different names"),
    "ids of text": (dict(category_ids=["1", "2"]), "category_ids must be a list of different whole numbers"),
    "ids that are equal": (dict(category_ids=[3, 3]), "category_ids must be a list of different whole"),
    "ids beyond int64": (dict(category_ids=[1, 2**63]), "category_ids must be a list of different whole"),
    "too few ids": (dict(category_ids=[1]), "category_ids has 1 ids for 2 class names"),
    "data of numbers": (dict(data={"images": 3}), 'data must be texts by name, is {"images": 3}'),
    "data a list": (dict(data=[]), "data must be texts by name, is []"),
    "environment of lists": (dict(environment={"threads": []}), "environment must be texts by name"),
    "entries of numbers": (dict(arrays=[1]), "arrays must be a list of names"),
    "entries that are not there": (dict(arrays=["parameters/x"]), "entries are missing"),
    "a field too many": (dict(more=1), "does not have exactly the fields format, step"),
    "a format of infinity": (dict(format=float("inf")), "does not have exactly the fields format, step"),
    "a format that is true": (dict(format=True), "does not have exactly the fields format, step"),
    "a later format": (dict(format=10**30), "has checkpoint format 1000000000000000000000000000000, this"),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_that_no_run_writes_is_refused_by_field(name, tmp_path, entries):
    change, words = METADATA[name]
    with np.load(tmp_path / "good.npz") as arrays:
        document = json.loads(str(arrays["metadata"]))
    entries["metadata.npy"] = text_entry(json.dumps(document))
    (tmp_path / "same.npz").write_bytes(zip_of(entries))
    assert_same(load_checkpoint(tmp_path / "same.npz"), a_checkpoint())
    entries["metadata.npy"] = text_entry(json.dumps(document | change))
    assert words in refusal(tmp_path / "a.npz", zip_of(entries))


@pytest.mark.parametrize("field", ["format", "step", "config", "class_names", "data", "arrays"])
def test_metadata_without_a_field_is_refused(field, tmp_path, entries):
    with np.load(tmp_path / "good.npz") as arrays:
        document = json.loads(str(arrays["metadata"]))
    del document[field]
    entries["metadata.npy"] = text_entry(json.dumps(document))
    words = (
        "not a checkpoint of minimask"
        if field == "format"
        else "its metadata does not have exactly the fields"
    )
    assert words in refusal(tmp_path / "a.npz", zip_of(entries))


@pytest.mark.parametrize(
    "text", ["[" * 5000, '{"a":' * 5000, "9" * 5000, "", "null", '{"format": 1', "\udce9", "\0"]
)
def test_metadata_that_is_no_json_is_refused(text, tmp_path, entries):
    entries["metadata.npy"] = text_entry(text)
    assert re.match(
        "not a checkpoint of minimask|damaged or not", refusal(tmp_path / "a.npz", zip_of(entries))
    )


def test_momentum_without_its_parameter_or_of_another_shape_is_refused(tmp_path):
    for momentum in ({"other": np.zeros(3)}, {"w": np.zeros((2, 3))}):
        save_checkpoint(tmp_path / "a.npz", Checkpoint({"w": np.zeros((3, 2))}, momentum))
        assert "is of another model than the parameters" in refusal(tmp_path / "a.npz")


def test_a_file_that_would_expand_is_refused_before_it_does(tmp_path, entries):
    content = array_of(header(shape=f"({2**24},)"), bytes(2**26))
    bomb = zip_of({**entries, "parameters/body.weight.npy": content}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    del content
    tracemalloc.start()
    try:
        line = refusal(tmp_path / "a.npz", bomb)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert "is compressed" in line


def test_entries_that_share_their_bytes_are_refused(tmp_path, entries):
    """Fifty entries of one megabyte each, in a file of one megabyte."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("parameters/a.npy", array_of(header(shape=f"({2**18},)"), bytes(2**20)))
        for number in range(50):
            info = info_like(archive.infolist()[0], f"parameters/{number}.npy")
            archive.filelist.append(info)
    assert "its entries are larger than the file" in refusal(tmp_path / "a.npz", file.getvalue())


def info_like(info, name):
    copied = zipfile.ZipInfo(name)
    for field in ("CRC", "compress_size", "file_size", "header_offset", "flag_bits", "external_attr"):
        setattr(copied, field, getattr(info, field))
    return copied


def test_an_endless_table_of_contents_is_refused_before_it_is_held(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(300):
            archive.writestr("x" * 60_000 + str(number), b"")
    content = file.getvalue()
    tracemalloc.start()
    try:
        line = refusal(tmp_path / "a.npz", content)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    assert "table of contents is too large" in line and len(line) < 300


def test_a_name_of_64_kb_in_the_file_is_cut_in_the_line(tmp_path, entries):
    entries["\x1b" * 60_000] = b"x"
    assert len(refusal(tmp_path / "a.npz", zip_of(entries))) < 400


@needs_links
@needs_pipes
def test_a_link_that_leads_to_itself_and_a_pipe_are_refused(tmp_path):
    (tmp_path / "loop.npz").symlink_to(tmp_path / "loop.npz")
    assert "Too many levels of symbolic links" in refusal(tmp_path / "loop.npz")
    with pytest.raises(InputError, match=r"loop\.npz: is a symbolic link that leads back to itself"):
        save_checkpoint(tmp_path / "loop.npz", a_checkpoint())
    os.mkfifo(tmp_path / "pipe.npz")
    assert "not a regular file" in refusal(tmp_path / "pipe.npz")
    assert len(list(tmp_path.iterdir())) == 2


def test_the_head_has_all_but_the_values_and_reads_none(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "a.npz", a_checkpoint())
    with CheckpointFile(tmp_path / "a.npz") as file:
        assert_same(file.read(), a_checkpoint())
    monkeypatch.setattr(Archive, "array", None)
    with CheckpointFile(tmp_path / "a.npz") as file:
        head = file.head
    for group in ("parameters", "momentum"):
        for name, array in getattr(a_checkpoint(), group).items():
            found = getattr(head, group)[name]
            assert (found.shape, found.dtype) == (array.shape, array.dtype) and not found.any()
            assert found.strides == (0,) * found.ndim or not found.size
    assert dataclasses.replace(head, parameters={}, momentum={}) == dataclasses.replace(
        a_checkpoint(), parameters={}, momentum={}
    )


def test_a_detector_of_another_model_is_refused_before_arrays_are_read_or_a_great_model_is_built(
    tmp_path, monkeypatch
):
    path = tmp_path / "a.npz"
    monkeypatch.setattr(Archive, "array", None)
    save_checkpoint(path, dataclasses.replace(a_checkpoint(), config={}))
    monkeypatch.setattr("minimask.models.detector.build_model", None)
    with pytest.raises(InputError, match=r"a\.npz: the weights are of another model: none has the 3 rows"):
        load_detector(path)
    monkeypatch.undo()
    monkeypatch.setattr(Archive, "array", None)
    rows = {"w": np.zeros((3, 2), np.float32)}
    save_checkpoint(path, dataclasses.replace(a_checkpoint(), config={}, parameters=rows, momentum={}))
    with pytest.raises(InputError, match=r"a\.npz: the weights are of another model: missing: "):
        load_detector(path)


def test_what_does_not_fit_the_optimizer_changes_nothing():
    layer = nn.Linear(3, 4, np.random.default_rng(0))
    optimizer = SGD(layer.named_parameters(), 0.1)
    before = {name: array.copy() for name, array in layer.state_dict().items()}
    other = Checkpoint({name: array + 1 for name, array in before.items()}, {"weight": np.ones((4, 3))})
    with pytest.raises(InputError, match=r"^some\.npz: the optimizer state is of another model: entry bias"):
        fit(other, "some.npz", layer, optimizer)
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
        assert not optimizer.state_dict()[name].any()


def test_classes_that_no_checkpoint_can_hold_are_named_before_training():
    check_classes(("a", "b"), (1, 90), "here")
    for names, ids, words in [
        (["a\n"], [1], r'here: class_names must be .*, is \["a\\n"\]; change them'),
        (["a"], ["1"], "here: category_ids must be"),
        (["a"], [1, 2], "differ in number"),
    ]:
        with pytest.raises(InputError, match=words):
            check_classes(names, ids, "here")


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


# NumPy 2.0 leaves its archive open after an error; so it complains when it is forgotten.
@pytest.mark.filterwarnings("ignore:Exception ignored in.*ZipFile:pytest.PytestUnraisableExceptionWarning")
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
