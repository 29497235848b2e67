"""Against torch: what torch.save writes is read to the bit, and torch reads what we write."""

import warnings
from collections import OrderedDict

import numpy as np
import pytest

from minimask import InputError
from minimask.weights import read_weights, write_pth, write_safetensors
from tests.test_weights import arrays_of_every_kind

torch = pytest.importorskip("torch")


def numbers(tensor) -> np.ndarray:
    """A tensor as an array of the same bits; bfloat16 as float32."""
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def compare(path, state) -> None:
    weights = read_weights(path)
    assert list(weights) == list(state)
    for name, tensor in state.items():
        want = numbers(tensor)
        assert weights[name].dtype == want.dtype and weights[name].shape == want.shape, name
        assert weights[name].tobytes() == want.tobytes(), name


def tricky() -> OrderedDict:
    """Tensors of every dtype, and views of every kind."""
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    kinds = (
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
    )
    state = {str(kind): (50 * x).to(kind) for kind in (*kinds, torch.int8, torch.uint8, torch.bool)}
    state |= {
        "tied": x,
        "tied again": x,
        "transposed": x.t(),
        "sliced": x[1:3, ::2],
        "row": x[2],
        "expanded": x[:1].expand(5, 6),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(x.clone()),
        "frozen": torch.nn.Parameter(x.clone(), requires_grad=False),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "of a large storage": torch.randn(10_000)[5:7],
        "bfloat16 transposed": x.bfloat16().t(),
    }
    return OrderedDict(state)


@pytest.mark.parametrize("new", [True, False])
def test_a_state_dict_of_tensors_of_every_kind_is_read_to_the_bit(new, tmp_path):
    torch.save(tricky(), tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    compare(tmp_path / "a.pth", tricky())


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("parallel", [True, False])
def test_a_training_checkpoint_of_a_parallel_model_with_its_optimizer_is_read(new, parallel, tmp_path):
    import argparse
    import collections

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    wrapped = torch.nn.DataParallel(model) if parallel else model
    optimizer = torch.optim.Adam(wrapped.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [16, 22])
    model[0](torch.ones(1, 3, 6, 6)).sum().backward()
    optimizer.step()
    document = {
        "model": wrapped.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "args": argparse.Namespace(lr=0.1, data="coco", sizes=[1, 2], nothing=None),
        "milestones": collections.Counter([1, 1, 2]),
        "epoch": 3,
        "best": np.float64(0.5),
    }
    torch.save(document, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    compare(tmp_path / "a.pth", model.state_dict())
    weights = read_weights(tmp_path / "a.pth")
    assert weights.wrapper == "model" and weights.prefix == ("module." if parallel else "")


@pytest.mark.parametrize("new", [True, False])
def test_a_whole_module_is_refused_with_the_line_that_saves_its_state_dict(new, tmp_path):
    torch.save(torch.nn.Linear(2, 3), tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    with pytest.raises(InputError, match=r"nothing was run.*torch\.save\(model\.state_dict\(\)"):
        read_weights(tmp_path / "a.pth")


def test_a_torchscript_program_is_refused_as_such(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, that it will go
        torch.jit.script(torch.nn.Linear(2, 3)).save(tmp_path / "a.pt")
    with pytest.raises(InputError, match="is a TorchScript program"):
        read_weights(tmp_path / "a.pt")


def test_files_without_checksums_and_one_tensor_alone(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tricky(), tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    compare(tmp_path / "a.pth", tricky())
    torch.save(torch.zeros(3), tmp_path / "b.pth")
    with pytest.raises(InputError, match="holds one tensor, not weights by name"):
        read_weights(tmp_path / "b.pth")


@pytest.mark.parametrize("mmap", [True, False])
def test_torch_loads_what_we_write(mmap, tmp_path):
    arrays = arrays_of_every_kind("f2 f4 f8 i1 i2 i4 i8 u1 ?")
    write_pth(tmp_path / "a.pth", arrays)
    state = torch.load(tmp_path / "a.pth", weights_only=True, mmap=mmap)
    assert isinstance(state, OrderedDict) and list(state) == list(arrays)
    for name, array in arrays.items():
        got, want = state[name].numpy(), array.astype(array.dtype.newbyteorder("="))
        assert got.dtype == want.dtype and got.shape == want.shape and got.tobytes() == want.tobytes()


def test_safetensors_reads_what_we_write_and_we_what_it_writes(tmp_path):
    library = pytest.importorskip("safetensors.torch")
    arrays = arrays_of_every_kind("f2 f4 f8 i1 i2 i4 i8 u1 ?")
    write_safetensors(tmp_path / "a.safetensors", arrays, {"class_names": '["cell"]'})
    state = library.load_file(tmp_path / "a.safetensors")
    assert state.keys() == arrays.keys()
    for name, array in arrays.items():
        want = array.astype(array.dtype.newbyteorder("="))
        assert state[name].numpy().dtype == want.dtype and state[name].numpy().tobytes() == want.tobytes()
    own = {name: tensor.clone().contiguous() for name, tensor in sorted(tricky().items())}
    library.save_file(own, tmp_path / "b.safetensors", {"format": "pt"})
    weights = read_weights(tmp_path / "b.safetensors")
    assert weights.keys() == own.keys()
    for name, tensor in own.items():
        assert weights[name].tobytes() == numbers(tensor).tobytes()
