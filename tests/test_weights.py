"""Files of weights are read without torch: right to the bit, or refused in one line."""

import json
import pickle
import shutil
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from minimask import InputError
from minimask.weights import Weights, read_weights, write_pth, write_safetensors
from minimask.weights.checkpoint import Checkpoint, save_checkpoint
from tests import weights_data as data

CHECKPOINTS = Path(__file__).parent / "reference" / "checkpoints"
EXPECTED = dict(np.load(CHECKPOINTS / "expected.npz"))


def read(content: bytes, tmp_path: Path) -> Weights:
    path = tmp_path / "file"
    path.write_bytes(content)
    return read_weights(path)


def refusal(content: bytes, tmp_path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(content, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'file'}: ") and "\n" not in message
    return message.removeprefix(f"{tmp_path / 'file'}: ")


@pytest.fixture(autouse=True)
def in_its_own_directory(tmp_path, monkeypatch):
    """Whatever a file would run would run here."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    yield
    assert list((tmp_path / "cwd").iterdir()) == []


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "training_checkpoint.pth"])
def test_what_torch_has_written_is_read_as_torch_reads_it(name):
    weights = read_weights(CHECKPOINTS / name)
    assert list(weights) == list(EXPECTED)
    for key, array in weights.items():
        assert array.shape == EXPECTED[key].shape and array.flags.c_contiguous
        np.testing.assert_array_equal(array.astype(np.float32), EXPECTED[key])
    dtypes = {
        key: weights[key].dtype.str for key in ("half", "bfloat", "double", "bool", "bn.num_batches_tracked")
    }
    assert list(dtypes.values()) == ["<f2", "<f4", "<f8", "|b1", "<i8"]


def test_the_record_says_what_the_file_was():
    training = read_weights(CHECKPOINTS / "training_checkpoint.pth")
    assert (training.format, training.wrapper, training.metadata) == ("torch", "model", {"epoch": 3})
    assert read_weights(CHECKPOINTS / "legacy.pth").format == "torch legacy"
    zoo = read_weights(CHECKPOINTS / "detectron2.pkl")
    assert (zoo.format, zoo.wrapper) == ("pickle", "model")
    assert zoo.metadata["__author__"] == "Detectron2 Model Zoo"
    assert zoo["backbone.bottom_up.stem.conv1.weight"].shape == (64, 3, 7, 7)
    assert "1 arrays" in repr(zoo)


@pytest.mark.parametrize(
    "name, says",
    [
        ("evil.pkl", "asks for posix.system, which weights never need; nothing was run"),
        ("evil_legacy.pth", "asks for posix.system"),
        ("evil_zip.pth", "asks for posix.system"),
        ("not_a_checkpoint.pth", "is a web page, not weights; download the file itself"),
        ("truncated.pth", "is cut short or damaged"),
        ("expected.npz", "not a checkpoint of minimask"),
    ],
)
def test_what_is_hostile_or_wrong_is_refused(name, says, tmp_path):
    assert says in refusal((CHECKPOINTS / name).read_bytes(), tmp_path)


def test_every_reference_file_is_in_one_of_the_tests_above():
    assert len(list(CHECKPOINTS.iterdir())) == 10


def test_tensors_are_views_of_storages_and_become_arrays_of_their_own(tmp_path):
    stored = data.storage("0", 6)
    entries = {
        "whole": data.tensor(stored),
        "tied": data.tensor(stored),
        "transposed": data.tensor(stored, (3, 2), (1, 3)),
        "second row": data.tensor(stored, (3,), (1,), offset=3),
        "second column": data.tensor(stored, (2,), (3,), offset=1),
        "expanded": data.tensor(stored, (4, 2), (0, 3)),
        "scalar": data.tensor(stored, (), (), offset=5),
        "empty": data.tensor(stored, (0, 7), (7, 1)),
    }
    numbers = np.arange(6, dtype="<f4")
    a = numbers.reshape(2, 3)
    wanted = [a, a, a.T, a[1], a[:, 1], np.broadcast_to(a[:, 0], (4, 2)), a[1, 2], np.empty((0, 7))]
    zipped = data.torch_zip(data.program(entries), {"0": numbers.tobytes()})
    old = {name: value.replace(stored, data.storage("0", 6, legacy=True)) for name, value in entries.items()}
    for content in (zipped, data.legacy(data.program(old), {"0": numbers})):
        weights = read(content, tmp_path)
        for want, got in zip(wanted, weights.values(), strict=True):
            np.testing.assert_array_equal(got, want)
            assert got.shape == want.shape and got.flags.c_contiguous and got.flags.writeable
        weights["whole"][:] = 0
        np.testing.assert_array_equal(weights["tied"], a)


@pytest.mark.parametrize(
    "name, dtype",
    [("Double", "<f8"), ("Half", "<f2"), ("Long", "<i8"), ("Int", "<i4"), ("Short", "<i2"), ("Char", "|i1")]
    + [("Byte", "|u1"), ("Bool", "|b1"), ("Float", "<f4")],
)
def test_every_type_of_torch_is_read(name, dtype, tmp_path):
    numbers = np.array([0, 1, 1, 0, 1, 0]).astype(dtype)
    kind = f"ctorch\n{name}Storage\n".encode()
    entries = {"a": data.tensor(data.storage("k", 6, kind))}
    array = read(data.torch_zip(data.program(entries), {"k": numbers.tobytes()}), tmp_path)["a"]
    np.testing.assert_array_equal(array, numbers.reshape(2, 3))
    assert array.dtype == dtype


def test_bfloat16_is_the_upper_half_of_a_float32(tmp_path):
    numbers = np.array([0x3F80, 0xC000, 0x7F80, 0x0001, 0x8000, 0xFF80], "<u2")
    stored = data.storage("0", 6, b"ctorch\nBFloat16Storage\n")
    entries = {"a": data.tensor(stored, (6,), (1,)), "scalar": data.tensor(stored, (), (), 1)}
    weights = read(data.torch_zip(data.program(entries), {"0": numbers.tobytes()}), tmp_path)
    want = np.array([1, -2, np.inf, 2.0**-133, -0.0, -np.inf], np.float32)
    assert weights["a"].tobytes() == want.tobytes() and weights["scalar"] == -2


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "model.module."])
def test_training_checkpoints_and_prefixes_are_unwrapped(wrapper, prefix, tmp_path):
    stored = data.storage("0", 6)
    state = {f"{prefix}a.weight": data.tensor(stored), f"{prefix}b": data.tensor(stored)}
    namespace = b"cargparse\nNamespace\n)\x81}" + data.text("lr") + b"G?\xf0\0\0\0\0\0\0sb"
    entries = {wrapper: data.program(state)[2:-1], "args": namespace, "epoch": b"K\x05"}
    weights = read(data.torch_zip(data.program(entries), {"0": bytes(24)}), tmp_path)
    assert list(weights) == ["a.weight", "b"] and weights.prefix == prefix and weights.wrapper == wrapper
    assert weights.metadata == {"epoch": 5}


def test_a_prefix_that_not_all_names_have_stays(tmp_path):
    entries = {"module.a": data.tensor(data.storage("0", 6)), "b": data.tensor(data.storage("0", 6))}
    weights = read(data.torch_zip(data.program(entries), {"0": bytes(24)}), tmp_path)
    assert list(weights) == ["module.a", "b"] and weights.prefix == ""


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickled_numpy_arrays_are_read_in_every_protocol(protocol, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "f4": rng.normal(size=(3, 4)).astype(np.float32),
        "fortran": np.asfortranarray(rng.normal(size=(3, 4))),
        "f2": rng.normal(size=5).astype(np.float16),
        "i8": np.arange(-3, 3),
        "u1": np.arange(250, 256).astype(np.uint8),
        "b1": np.array([True, False]),
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3), np.float32),
        "long": rng.integers(0, 256, 70_000).astype(np.uint8),
    }
    document = {"model": OrderedDict(arrays), "__author__": "me", "best": np.float64(0.5)}
    weights = read(pickle.dumps(document, protocol=protocol), tmp_path)
    assert weights.metadata == {"__author__": "me"}
    for name, array in arrays.items():
        got = weights[name]
        assert got.dtype == array.dtype and got.shape == array.shape and got.flags.c_contiguous
        np.testing.assert_array_equal(got, array)


def test_what_python_2_pickled_is_read(tmp_path):
    """Its texts are BINSTRING, as are the bytes of arrays; Caffe2 put the optimizer's state beside them."""

    def short(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85" + short(b"b") + b"tR"
    dtype = (
        b"cnumpy\ndtype\n("
        + short(b"f4")
        + b"K\0K\x01tR(K\x03"
        + short(b"<")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    )
    numbers = np.array([1.5, -2.0, 300.0], "<f4")
    filled = array + b"(K\x01K\x03\x85" + dtype + b"\x89" + short(numbers.tobytes()) + b"tb"
    blobs = b"}(" + short(b"conv1_w") + filled + short(b"conv1_w_momentum") + filled + short(b"lr") + b"K\1u"
    weights = read(b"\x80\x02}" + short(b"blobs") + blobs + b"s.", tmp_path)
    assert list(weights) == ["conv1_w"] and weights.wrapper == "blobs"
    np.testing.assert_array_equal(weights["conv1_w"], numbers)


def test_our_own_checkpoints_are_read(tmp_path):
    from minimask.config import Config, to_dict

    parameters = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    found = Checkpoint(
        parameters,
        {"a.weight": np.zeros((2, 3), np.float32)},
        7,
        0,
        to_dict(Config()),
        ["cell", "yeast"],
        [3, 9],
    )
    save_checkpoint(tmp_path / "checkpoint.npz", found)
    weights = read_weights(tmp_path / "checkpoint.npz")
    assert weights.format == "minimask" and list(weights) == ["a.weight"] and weights.metadata["step"] == 7
    assert weights.class_names == ("cell", "yeast") and weights.category_ids == (3, 9)


@pytest.mark.parametrize("config", [{}, {"model": {}}])
def test_a_checkpoint_may_leave_out_the_options_of_its_model(config, tmp_path):
    from minimask.config import Config

    found = Checkpoint({"a.weight": np.ones(3, np.float32)}, config=config)
    save_checkpoint(tmp_path / "checkpoint.npz", found)
    assert read_weights(tmp_path / "checkpoint.npz").metadata["model"] == Config().model.name


def arrays_of_every_kind(dtypes: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    made = {dtype: (rng.normal(size=(2, 3)) * 50).astype(dtype) for dtype in dtypes.split()}
    special = np.array([np.nan, np.inf, -0.0, 1e-45, 3e38], np.float32)
    a = rng.normal(size=(4, 5)).astype(np.float32)
    views = {
        "transposed": a.T,
        "sliced": a[1::2, ::-1],
        "expanded": np.broadcast_to(a[0], (3, 5)),
        "special": special,
    }
    return (
        made
        | views
        | {"big-endian": a.astype(">f4"), "scalar": np.array(3.0), "empty": np.zeros((0, 2), np.float32)}
    )


@pytest.mark.parametrize(
    "write, dtypes",
    [
        (write_safetensors, "f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 ?"),
        (write_pth, "f2 f4 f8 i1 i2 i4 i8 u1 ?"),
    ],
)
def test_what_is_written_is_read_with_the_same_bits(write, dtypes, tmp_path):
    arrays = arrays_of_every_kind(dtypes) | {"a name: \U0001f9e0 \ud800 \n": np.zeros(3)}
    write(tmp_path / "a", arrays)
    write(tmp_path / "b", arrays)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    weights = read_weights(tmp_path / "a")
    assert list(weights) == list(arrays)
    for name, array in arrays.items():
        assert weights[name].dtype == array.dtype.newbyteorder("=") and weights[name].shape == array.shape
        assert weights[name].tobytes() == array.astype(weights[name].dtype).tobytes()


def test_nothing_at_all_is_written_but_not_read(tmp_path):
    for write in (write_safetensors, write_pth):
        write(tmp_path / "none", {})
        with pytest.raises(InputError, match="holds no weights"):
            read_weights(tmp_path / "none")


def test_storages_in_a_pth_are_aligned_and_checked(tmp_path):
    write_pth(tmp_path / "a.pth", {"a": np.ones(5, np.float32), "b": np.ones(3)})
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert archive.testzip() is None
        infos = archive.infolist()
    assert all((i.header_offset + 30 + len(i.filename) + len(i.extra)) % 64 == 0 for i in infos)
    content = bytearray((tmp_path / "a.pth").read_bytes())
    content[content.index(np.ones(5, np.float32).tobytes())] ^= 1
    assert "checksum" in refusal(bytes(content), tmp_path)


@pytest.mark.parametrize(
    "write, dtype", [(write_safetensors, np.complex64), (write_pth, np.uint16), (write_pth, "U3")]
)
def test_a_dtype_that_a_format_lacks_is_refused_and_nothing_is_written(write, dtype, tmp_path):
    with pytest.raises(InputError, match=r"array a|tensor a"):
        write(tmp_path / "out", {"a": np.zeros(2, dtype)})
    assert [path.name for path in tmp_path.iterdir()] == ["cwd"]


def test_safetensors_metadata_comes_back_and_only_sound_classes_count(tmp_path):
    path, arrays = tmp_path / "a", {"a": np.zeros(2)}
    good = {"class_names": '["cell"]', "category_ids": "[1]"}
    write_safetensors(path, arrays, good)
    assert read_weights(path).metadata == {"format": "pt"} | good and read_weights(path).class_names == (
        "cell",
    )
    for bad in ("[", '{"a": 1}', "[1]", '["a", "a"]', "[" * 9000, "null"):
        write_safetensors(path, arrays, {"class_names": bad})
        assert read_weights(path).class_names == ()


def test_bfloat16_safetensors_become_float32(tmp_path):
    header = {"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}
    content = data.tensors(json.dumps(header).encode(), np.array([0x3F80, 0xC000], "<u2").tobytes())
    np.testing.assert_array_equal(read(content, tmp_path)["a"], np.array([1, -2], np.float32))


def test_torch_may_leave_the_checksums_out(tmp_path):
    content = bytearray(data.plain_zip())
    for signature, place in ((b"PK\3\4", 14), (b"PK\1\2", 16)):
        start = content.find(signature)
        while start >= 0:
            content[start + place : start + place + 4] = bytes(4)
            start = content.find(signature, start + 4)
    np.testing.assert_array_equal(read(bytes(content), tmp_path)["a"], np.arange(6).reshape(2, 3))


def test_the_kind_of_file_does_not_depend_on_its_name(tmp_path):
    shutil.copy(CHECKPOINTS / "zip.pth", tmp_path / "weights.safetensors")
    assert read_weights(tmp_path / "weights.safetensors").format == "torch"


def test_a_file_that_is_not_there_or_no_file_is_one_line(tmp_path):
    for path in (tmp_path / "nothing.pth", tmp_path, "a\0b"):
        with pytest.raises(InputError, match="cannot be read"):
            read_weights(path)
