"""Files of weights as an enemy writes them: refused in one line that names the reason, and nothing is run."""

import json
import struct
import zipfile

import numpy as np
import pytest

from minimask.weights import read_weights
from tests import weights_data as data
from tests.test_weights import in_its_own_directory, read, refusal  # noqa: F401

STORED = data.storage("0", 6)
NUMBERS = {"0": np.arange(6, dtype="<f4").tobytes()}


def in_zip(value: bytes) -> bytes:
    """A .pth whose only entry is what this program pushes."""
    return data.torch_zip(data.program({"a": value}), NUMBERS)


ASKS = {
    "os.system": (data.EVIL, "asks for posix.system"),
    "INST": (b"(" + data.text("touch PWNED") + b"ios\nsystem\n", "asks for os.system"),
    "STACK_GLOBAL": (b"\x8c\x02os\x8c\x06system\x93" + data.text("x") + b"\x85R", "asks for os.system"),
    "NEWOBJ": (b"csubprocess\nPopen\n" + data.text("touch PWNED") + b"\x85\x81", "asks for subprocess.Popen"),
    "a dotted name": (b"\x8c\x05torch\x8c\x0f_utils.os.syste\x93", "asks for torch._utils.os.syste"),
    "another's name": (b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n", "_rebuild_tensor_v2.__globals__"),
    "getattr": (b"c__builtin__\ngetattr\n", "asks for __builtin__.getattr"),
    "a name that is a tensor": (data.tensor(STORED) + b"\x8c\x06system\x93", "a name that is not a text"),
    "a name without end": (b"c" + b"a" * 10_000, "a name in its pickle does not end"),
    "a name of control characters": (b"c\x1b[2J\n\rx\n", r"asks for \x1b[2J.\rx"),
    "a module's class": (b"ctorchvision.models.resnet\nResNet\n)\x81", "torch.save(model.state_dict()"),
    "a class of one's own": (b"c__main__\nNet\n)\x81", "A pickled model needs the code of its classes"),
    "an extension": (b"\x82\x01", "the opcode '\\x82', which weights never need"),
    "an extension of four bytes": (b"\x84\x01\0\0\0", "the opcode '\\x84'"),
    "OBJ": (b"(ccollections\nOrderedDict\no", "the opcode 'o'"),
    "a persistent name": (b"P0\n", "the opcode 'P'"),
    "a call of a tensor": (data.tensor(STORED) + b")R", "calls what has no name"),
    "a call of what is only named": (data.FLOAT + b")R", "calls what it may only name"),
    "a call of a row with no tuple": (b"ccollections\nOrderedDict\n]R", "calls what has no name"),
    "BUILD on a name": (data.FLOAT + b"}b", "gives a state to what has none"),
    "BUILD on a tensor": (data.tensor(STORED) + b"}b", "gives a state to what has none"),
    "APPEND on a name": (data.FLOAT + b"K\1a", "appends to what is not a list"),
    "SETITEM on a name": (data.FLOAT + b"K\1K\1s", "sets an entry of what is not a dict"),
    "SETITEM on a tensor": (data.tensor(STORED) + b"K\1K\1s", "sets an entry of what is not a dict"),
    "an odd number of items": (b"}(K\1u", "sets an entry of what is not a dict"),
    "a tuple as a key": (b"})K\1s", "has a dict with a key that is of type tuple"),
    "a float as a key": (b"}G" + bytes(8) + b"K\1s", "a key that is of type float"),
    "a large key": (b"}" + data.integer(2**61 - 1) + b"K\1s", "a key that is too large an integer"),
    "an empty stack": (b"0", "the opcode '0'"),
    "a mark that is not there": (b"tt", "looks for a mark"),
    "memory that is not there": (b"h\x09", "recalls what it has not remembered"),
    "nesting": (b"(" * 200, "nested more than 100 deep"),
    "an integer of 2 GB": (b"\x8b\xff\xff\xff\x7f", "an integer of 2,147,483,647 bytes"),
    "an integer of -1 bytes": (b"\x8b\xff\xff\xff\xff", "an integer of -1 bytes"),
    "a text of 4 GB": (b"X\xff\xff\xff\xff", "a length of 4,294,967,295 bytes"),
    "a text of 2^63 bytes": (b"\x8d" + b"\xff" * 8, "a length of 18,446,744,073,709,551,615 bytes"),
    "bytes of 2^60 bytes": (b"\x8e" + struct.pack("<Q", 2**60), "a length of 1,152,921,504,606,846,976"),
    "an old text of -1 bytes": (b"T\xff\xff\xff\xff" + b"K\1", "a text of -1 bytes"),
    "a text that is not UTF-8": (b"X\2\0\0\0\xff\xfe", "is not UTF-8"),
    "a frame that lies": (b"\x95" + b"\xff" * 8, "ends early"),
    "another protocol": (b"\x80\x09", "pickle protocol 9"),
    "STOP in the middle": (b".", "stops in the middle"),
    "no end": (b"N" * 100 + b"\x8c\xff", "a length of 255 bytes"),
    "too many opcodes": (b"N" * 2_000_001, "more than 2,000,000 opcodes"),
}  # fmt: skip


@pytest.mark.parametrize("name", ASKS)
@pytest.mark.parametrize("wrap", ["zip", "legacy", "pickle"])
def test_programs_that_weights_do_not_need_are_refused(name, wrap, tmp_path):
    value, says = ASKS[name]
    pickled = data.program({"a": value})
    if wrap == "legacy":
        pickled = pickled.replace(STORED, data.storage("0", 6, legacy=True))
    content = {
        "zip": data.torch_zip(pickled, NUMBERS),
        "legacy": data.legacy(pickled, {"0": np.arange(6, dtype="<f4")}),
        "pickle": pickled,
    }[wrap]
    told = refusal(content, tmp_path)
    assert says in told or (wrap == "pickle" and "refers to something outside it" in told)
    assert len(told) < 700


def test_a_memo_of_any_number_takes_no_memory_for_those_below(tmp_path):
    """Python's own reader makes a row of as many places: 256 MB, for a file of seven bytes."""
    value = b"}r\xff\xff\xff\x1fj\xff\xff\xff\x1f0"
    assert "the opcode '0'" in refusal(in_zip(value), tmp_path)


def test_a_list_that_holds_itself_and_a_tuple_of_tuples_of_tuples_end(tmp_path):
    entries = {"a": data.tensor(STORED), "list": b"]q\1h\1a", "tuple": b")" + b"q\2h\2\x86" * 300}
    assert list(read(data.torch_zip(data.program(entries), NUMBERS), tmp_path)) == ["a"]


@pytest.mark.parametrize(
    "shape, strides, offset, says",
    [
        ((2, 4), (4, 1), 0, "reads number 7 of a storage of 6"),
        ((2, 3), (3, 1), 1, "reads number 6"),
        ((2, 2), (2**40, 1), 0, "reads number"),
        ((2**47,), (0,), 0, "would take"),
        ((2**24, 8), (0, 0), 0, "would take"),
        ((2**47, 2**47), (0, 0), 0, "more than 2^48 numbers"),
        ((2**70,), (0,), 0, "whole numbers from 0 to 2^48"),
        ((-1,), (1,), 0, "whole numbers from 0 to 2^48"),
        ((2,), (-1,), 5, "not a whole number from 0 to 2^48"),
        ((2,), (1,), -1, "not a whole number from 0 to 2^48"),
        ((2, 3), (3,), 0, "without storage, offset, shape and strides"),
        ((1,) * 9, (1,) * 9, 0, "at most 8 numbers"),
        ((0, 2**60), (1, 1), 0, "whole numbers from 0 to 2^48"),
    ],
)
def test_tensors_that_do_not_fit_their_storage_are_refused(shape, strides, offset, says, tmp_path):
    assert says in refusal(in_zip(data.tensor(STORED, shape, strides, offset)), tmp_path)


@pytest.mark.parametrize(
    "stored, says",
    [
        (data.storage("0", 7), "storage 0 has 24 bytes, not 28"),
        (data.storage("1", 6), "storage 1 is not there"),
        (data.storage("../0", 6), "storage ../0 is not there"),
        (data.storage("0", 6, b"ctorch\nDoubleStorage\n"), "has 24 bytes, not 48"),
        (data.storage("0", 6, b"ctorch\nComplexFloatStorage\n"), "asks for torch.ComplexFloatStorage"),
        (data.storage("0", 6, b"ccollections\nOrderedDict\n"), "a storage of 6 numbers of type col"),
        (data.storage("0", -1), "a storage of -1 numbers"),
        (data.storage("0", 2**62), "a storage of 4,611,686,018,427,387,904 numbers"),
        (b"K\1Q", "refers to something other than a storage"),
        (b"(" + data.text("module") + b"NNNtQ", "is a pickled model"),
        (b"(" + data.text("storage") + data.FLOAT + b"K\0K\0K\6tQ", "other than a storage"),
    ],
)  # fmt: skip
def test_storages_that_are_not_there_or_of_another_size_are_refused(stored, says, tmp_path):
    assert says in refusal(in_zip(data.tensor(stored)), tmp_path)


def test_big_endian_files_are_refused(tmp_path):
    pickled = data.program({"a": data.tensor(STORED)})
    assert "byte order big" in refusal(data.torch_zip(pickled, NUMBERS, order=b"big"), tmp_path)
    old = data.program({"a": data.tensor(data.storage("0", 6, legacy=True))})
    assert "is big-endian" in refusal(data.legacy(old, {"0": np.zeros(6, "<f4")}, b"\x89"), tmp_path)
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85C\1btR"
    dtype = b"cnumpy\ndtype\n(" + data.text("f4") + b"\x89\x88tR(K\3" + data.text(">") + b"NNNK\0K\0K\0tb"
    assert "is big-endian" in refusal(
        data.program({"a": array + b"(K\1K\1\x85" + dtype + b"\x89C\0tb"}), tmp_path
    )


@pytest.mark.parametrize(
    "dtype, state, says",
    [
        ("O8", b"(K\1K\1\x85D\x89C\0tb", "has an array of dtype O8"),
        ("f4", b"(K\1K\2\x85D\x89C\4abcdtb", "an array of shape (2,) with 4 bytes"),
        ("f4", b"(K\1J\xff\xff\xff\xff\x85D\x89C\0tb", "whole numbers from 0 to 2^48"),
        ("f4", b"(K\1K\1\x85D\x89]tb", "without shape, dtype and bytes"),
        ("f4", b"Nb", "without shape, dtype and bytes"),
    ],
)
def test_numpy_arrays_that_are_none_are_refused(dtype, state, says, tmp_path):
    made = b"cnumpy\ndtype\n(" + data.text(dtype) + b"\x89\x88tR(K\3" + data.text("<") + b"NNNK\0K\0K\0tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85C\1btR" + state.replace(
        b"D", made
    )
    assert says in refusal(data.program({"a": array}), tmp_path)


def test_legacy_files_whose_parts_do_not_agree_are_refused(tmp_path):
    numbers = np.arange(6, dtype="<f4")
    good = data.legacy(data.program({"a": data.tensor(data.storage("0", 6, legacy=True))}), {"0": numbers})
    np.testing.assert_array_equal(read(good, tmp_path)["a"].ravel(), numbers)
    assert "is cut short" in refusal(good[:-1], tmp_path)
    assert "storage 0 has 5 numbers, not 6" in refusal(
        good[:-32] + struct.pack("<q", 5) + good[-24:], tmp_path
    )
    for ends in range(0, len(good) - 24, 7):
        assert refusal(good[:ends], tmp_path)
    missing = data.legacy(data.program({"a": data.tensor(data.storage("0", 6, legacy=True))}), {})
    assert "storage 0 is not there" in refusal(missing, tmp_path)


# Zips


def test_compressed_entries_are_refused_before_they_are_unpacked(tmp_path):
    pickled = data.program({"a": data.tensor(data.storage("0", 25_000_000))})
    bomb = data.zipped({"n/data.pkl": pickled, "n/data/0": bytes(100_000_000)}, zipfile.ZIP_DEFLATED)
    path = tmp_path / "storage"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("n/data.pkl", pickled)
        archive.writestr("n/data/0", bytes(100_000_000), zipfile.ZIP_DEFLATED)
    assert "has the compressed entry n/data/0" in refusal(path.read_bytes(), tmp_path)
    assert len(bomb) < 110_000 and "has the compressed entry n/data.pkl" in refusal(bomb, tmp_path)


def central(content: bytes, place: int, value: bytes, entry: int = 0) -> bytes:
    """A zip with another value in its table of contents."""
    start = -1
    for _ in range(entry + 1):
        start = content.index(b"PK\1\2", start + 1)
    return content[: start + place] + value + content[start + place + len(value) :]


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda c: central(c, 8, b"\1\0"), "is an encrypted zip"),
        (lambda c: central(c, 42, b"\1\0\0\0"), "is not where the zip says"),
        (lambda c: central(c, 42, bytes(4), 1), "has another name inside the zip"),
        (lambda c: central(c, 20, b"\xff\xff\xff\x7f" * 2, 3), "its entries"),
        (lambda c: central(c, 20, b"\xff\xff\xff\xff" * 2), "its entries overlap"),
        (lambda c: c[: len(c) // 2], "is cut short or damaged"),
        (lambda c: c[:-1], "is cut short or damaged"),
    ],
)  # fmt: skip
def test_zips_that_lie_are_refused(change, says, tmp_path):
    assert says in refusal(change(data.plain_zip()), tmp_path)


def test_zip64_sizes_that_lie_are_refused(tmp_path):
    extra = struct.pack("<HHQQ", 1, 16, 2**60, 2**60)
    content = data.plain_zip()
    start = content.index(b"PK\1\2", content.index(b"name/data/0", content.index(b"PK\1\2")) - 50)
    name = struct.unpack("<H", content[start + 28 : start + 30])[0]
    entry = bytearray(content[start : start + 46 + name])
    entry[20:28], entry[30:32] = b"\xff" * 8, struct.pack("<H", len(extra))
    end = bytearray(content[content.index(b"PK\5\6") :])
    end[12:16] = struct.pack("<I", struct.unpack("<I", end[12:16])[0] + len(extra))
    rest = content[start + 46 + name : content.index(b"PK\5\6")]
    lying = content[:start] + bytes(entry) + extra + rest + bytes(end)
    assert "its entries" in refusal(lying, tmp_path)


def test_entries_that_stand_twice_or_over_each_other_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = tmp_path / "twice"
        with zipfile.ZipFile(path, "w") as archive:
            for _ in range(2):
                archive.writestr("n/data.pkl", data.program({"a": data.tensor(STORED)}))
    assert "has an entry twice" in refusal(path.read_bytes(), tmp_path)
    content = data.plain_zip()
    first = content.index(b"PK\1\2")
    larger = central(content, 20, struct.pack("<II", first, first))
    assert "entries overlap" in refusal(larger, tmp_path)


@pytest.mark.parametrize(
    "entries, says",
    [
        ({"readme.txt": b"weights"}, "a zip with 0 entries data.pkl"),
        ({"a/data.pkl": b"", "b/data.pkl": b""}, "a zip with 2 entries data.pkl"),
        ({"n/data.pkl": b"", "n/constants.pkl": b"", "n/code/a.py": b""}, "is a TorchScript program"),
        ({"n/data.pkl": b""}, "its pickle ends early"),
        ({"n/data.pkl": b"\x80\x02K\1."}, "holds an object of type int, not weights by name"),
        ({"n/data.pkl": b"\x80\x02}."}, "holds no weights by name (its entries: none)"),
        (
            {"n/data.pkl": b"\x80\x02}" + data.text("lr") + b"K\1s."},
            "holds no weights by name (its entries: 'lr')",
        ),
    ],
)
def test_other_zips_are_told_what_they_are(entries, says, tmp_path):
    assert says in refusal(data.zipped(entries), tmp_path)


# safetensors


def table(**changes) -> bytes:
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} | changes
    return data.tensors(json.dumps({"a": entry}).encode(), bytes(24))


@pytest.mark.parametrize(
    "content, says",
    [
        (data.tensors(b"{}", length=10**18), "a safetensors header of 1,000,000,000,000,000,000 bytes"),
        (data.tensors(b"{" + b" " * (5 << 20) + b"}"), "has a header of 5,242,882 bytes"),
        (data.tensors(b"{" * 5000), "its header is not JSON"),
        (data.tensors(b'{"a":' * 200_000), "its header is not JSON"),
        (data.tensors(b'{"a": ' + b"9" * 5000 + b"}"), "its header is not JSON"),
        (data.tensors(b"{\xff}"), "its header is not JSON"),
        (data.tensors(b'{"a": NaN}'), "NaN in its header"),
        (data.tensors(b'{"a": {}, "a": {}}'), "its header has a name twice"),
        (data.tensors(b'{"a": {"dtype": "F32", "dtype": "F64"}}'), "its header has a name twice"),
        (data.tensors(b'{"__metadata__": {"a": 1}}'), "not texts by name"),
        (data.tensors(b'{"a": []}'), "array a has no data_offsets"),
        (table(data_offsets=[0, 23]), "array a is not as large as its shape"),
        (table(data_offsets=[4, 28]), "does not follow the one before"),
        (table(data_offsets=[0, True]), "has no data_offsets"),
        (table(shape=[2, 4]), "array a is not as large as its shape"),
        (table(shape=[2**63, 0]), "whole numbers from 0 to 2^48"),
        (table(shape=[-2, -3]), "whole numbers from 0 to 2^48"),
        (table(shape=[2.0, 3]), "whole numbers from 0 to 2^48"),
        (table(shape="23"), "a shape that is not a list"),
        (table(dtype="F8_E4M3"), "array a has dtype F8_E4M3, not one of F32"),
        (table(dtype=["F32"]), "not one of F32"),
        (table() + b"\0", "its arrays end at byte"),
        (table()[:-1], "its arrays end at byte"),
    ],
)
def test_safetensors_that_are_none_are_refused(content, says, tmp_path):
    told = refusal(content, tmp_path)
    assert says in told and len(told) < 500


def test_safetensors_that_lie_over_each_other_are_refused(tmp_path):
    entries = {
        name: {"dtype": "U8", "shape": [4], "data_offsets": at} for name, at in (("a", [0, 4]), ("b", [2, 6]))
    }
    assert "does not follow the one before" in refusal(
        data.tensors(json.dumps(entries).encode(), bytes(6)), tmp_path
    )


# Other files


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "is empty"),
        (b"\n <!DOCTYPE html><p>Not found", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a pointer of Git LFS"),
        (b"\x1f\x8b\x08" + bytes(99), "is compressed; unpack it first"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "is HDF5"),
        (b"\x93NUMPY\1\0" + bytes(99), "is one NumPy array"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "is a picture"),
        (b"\xff\xd8\xff\xe0" + bytes(99), "is a picture"),
        (b'{"images": []}', "is JSON, not weights"),
        (b"cos\nsystem\n(S'touch PWNED'\ntR.", "asks for os.system"),
        (b"(S'touch PWNED'\nios\nsystem\n.", "asks for os.system"),
        (b"(dp0\nS'model'\np1\n.", "is a pickle of protocol 0"),
        (bytes(257) + b"ustar" + bytes(250), "is a tar"),
        (b"hello", "has only 5 bytes"),
        (b"x" * 4000, "is none of the kinds that are read: .pth"),
        (b"\x80", "ends early"),
        (b"\x80\x02", "its pickle ends early"),
        (b"PK\3\4", "is cut short or damaged"),
    ],
)
def test_other_files_are_told_what_they_are_and_what_to_do(content, says, tmp_path):
    assert says in refusal(content, tmp_path)


def test_the_command_says_it_in_one_line_too(tmp_path, capsys):
    from minimask.command import cli

    (tmp_path / "evil.pth").write_bytes(in_zip(data.EVIL))
    assert cli.main(["export", "--weights", str(tmp_path / "evil.pth"), str(tmp_path / "out.pth")]) == 2
    error = capsys.readouterr().err
    assert "asks for posix.system" in error and error.count("\n") == 1
    assert not (tmp_path / "out.pth").exists()


def test_no_module_of_the_readers_imports_pickle():
    from tests.test_layers import MODULES, imports_of

    readers = [name for name in MODULES if name.startswith("minimask.weights")]
    assert len(readers) >= 9
    assert not [
        n
        for n in readers
        if imports_of(n) & {"pickle", "_pickle", "copyreg", "marshal", "importlib", "shelve"}
    ]
    assert read_weights.__module__ in readers
