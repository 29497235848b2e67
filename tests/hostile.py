"""Files as an enemy or a failing disk may write them: mutations of checkpoints and TOML, and their judge.

``python -m tests.hostile checkpoint 0 1000 DIRECTORY`` tries mutations 0 to 999 in a process with 1 GB of
memory, in which a watchdog ends what takes ten seconds, and prints how many were taken and how many refused.
"""

import faulthandler
import io
import json
import random
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from minimask import models
from minimask.config import Config, from_dict, read_config, to_dict, to_toml, with_settings
from minimask.data import Shapes
from minimask.errors import InputError, one_line
from minimask.models import networks
from minimask.models.detector import load_detector
from minimask.models.networks import build_model, resolved
from minimask.training.distributed import ALONE
from minimask.training.keeper import Keeper
from minimask.training.loop import make_optimizer
from minimask.weights.checkpoint import Checkpoint, load_checkpoint

SHAPES = Shapes(2, seed=1, size=32)
SECONDS, MEMORY = 10, 1 << 30

VALUES = [None, True, False, 0, -1, 1, -7, 1.5, -0.0, 1e308, float("inf"), float("nan"), 2**31, 2**53 + 1]
VALUES += [
    2**63,
    10**30,
    -(10**30),
    10**400,
    "",
    "x",
    "nan",
    "1e9",
    "\n",
    "\x1b[2J",
    "\0",
    "\ud800",
    "\udce9",
]
VALUES += [
    "a" * 5000,
    [],
    {},
    [[]],
    [None],
    {"": {}},
    [1, "a"],
    ["a", "a"],
    [0] * 1000,
    {"a": {"b": {"c": []}}},
]

HEADERS = [
    "(",
    "",
    "{[]: 1}",
    "-" * 3000 + "1",
    "[" * 5000,
    "{" * 3000,
    "{}",
    "{'descr': '<f4'}",
    "\0" * 64,
    "lambda: 0",
]
DTYPES = ["'<f4'", "'<f8'", "'>f4'", "'<f2'", "()", "'<U9'", "'|O'", "'<M8[D]'", "'<c8'", "[('a', '<f4')]"]
DIMENSIONS = ["", "3,", "0,", f"{10**30},", "-1,", "1, 2, 3", f"0, {2**62}", "1, " * 90, "3"]
HEADERS += [
    f"{{'descr': {dtype}, 'fortran_order': {fortran}, 'shape': ({dimensions}), }}"
    for dtype in DTYPES
    for fortran in ("False", "True", "None")
    for dimensions in DIMENSIONS
]

OPTIONS = [
    "[" * 3000,
    "[" * 3000 + "]" * 3000,
    "9" * 5000,
    "1" + "0" * 400,
    "-1",
    "0",
    "true",
    "nan",
    "inf",
    "1e400",
]
OPTIONS += [
    "0x" + "f" * 5000,
    '"' + "x" * 5000 + '"',
    '"\\u0000"',
    "'''",
    '"""',
    '"\\ud800"',
    "1979-05-27",
    "{}",
    "[]",
]
OPTIONS += [
    "{" + "a." * 50_000 + "a = 1}",
    "{a = " * 500 + "1" + "}" * 500,
    "[1, 2]",
    "[0.5, 2.0]",
    "'\x1b[31m'",
    "2.5",
]
LINES = [
    "[" + "a." * 50_000 + "a]",
    "a." * 50_000 + "a = 1",
    '"a" . ' * 20_000 + "b = 1",
    "[[train]]",
    "[train.steps]",
]
LINES += [
    "\x1b[2J",
    "\ufeff",
    "=",
    "[",
    "a = 1\na = 2",
    "[train]",
    "x" * 200_000,
    "# " + "a." * 50_000,
    "\x1b[2J = 1",
]


def watched(work: Callable[[], None]) -> str:
    """Do it; "taken", or "refused" by one line, or the assertion that fails."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        work()
    except InputError as error:
        text = str(error)
        assert text == one_line(text) and 10 < len(text) < 1500, ascii(text)
        return "refused"
    finally:
        faulthandler.cancel_dump_traceback_later()
    return "taken"


# Checkpoints


def tiny(num_classes: int, min_size=None, max_size=1600, norm=None, trainable_backbone_layers=5, **options):
    """The packaged networks' place is taken by one of 20,000 parameters."""
    small = dict(channels=(8, 8, 8, 8), fpn_channels=8, box_width=8)
    return models.maskrcnn_small(num_classes, min_size=min_size, max_size=max_size, **small, **options)


def tiny_networks() -> None:
    """For this process, which does nothing else."""
    for name, network in networks.NETWORKS.items():
        networks.NETWORKS[name] = replace(network, build=tiny)


def the_run(path: Path) -> Keeper:
    """A run on SHAPES, at its beginning."""
    model = build_model(Config(), len(SHAPES.class_names) + 1)
    optimizer = make_optimizer(model, resolved(Config()).train)
    return Keeper(path, resolved(Config()), SHAPES, model, optimizer, ALONE)


def entries_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def zip_of(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip with right checksums, whatever is in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def array_of(header: str, content: bytes = b"") -> bytes:
    text = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + content


def text_entry(text: str) -> bytes:
    """What numpy.save writes of a text, surrogates included."""
    content = text.encode("utf-32-le", "surrogatepass")
    return array_of(f"{{'descr': '<U{len(content) // 4}', 'fortran_order': False, 'shape': (), }}", content)


def with_bits(rng: random.Random, content: bytes) -> bytes:
    """Bits flipped, bytes overwritten, cut off, inserted or doubled, anywhere or towards the end."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        place = (
            rng.randrange(len(changed))
            if rng.random() < 0.5
            else max(0, len(changed) - rng.randrange(1, 9000))
        )
        length = rng.choice([1, 4, 64])
        kind = rng.randrange(5)
        if kind == 0:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[place : place + length] = rng.randbytes(length)
        elif kind == 2:
            changed[place : place + length] = b"\xff" * length
        elif kind == 3:
            changed[place:place] = changed[:length]
        else:
            del changed[place : place + rng.choice([1, 100, len(changed)])]
        if not changed:
            break
    return bytes(changed)


def with_header(rng: random.Random, content: bytes) -> bytes:
    """An array with another header, or a zip with other entries."""
    entries = entries_of(content)
    name = rng.choice(list(entries))
    array, kind = entries[name], rng.randrange(8)
    start = 10 + int.from_bytes(array[8:10], "little")
    if kind < 4:
        entries[name] = array_of(rng.choice(HEADERS), rng.choice([array[start:], b"", array]))
    elif kind == 4:
        text = bytearray(array[10:start])
        for _ in range(rng.choice([1, 2, 5])):
            text[rng.randrange(len(text))] = rng.choice(b"()[]{}'0129,:-+.fFU \0\xff")
        entries[name] = array[:10] + bytes(text) + array[start:]
    elif kind == 5:
        values = np.frombuffer(array[start : start + (len(array) - start) // 4 * 4], "<f4").copy()
        values[: rng.randrange(1, 4)] = rng.choice([np.nan, np.inf, -np.inf, 3e38])
        entries[name] = array[:start] + values.tobytes()
    elif kind == 6:
        del entries[name]
    else:
        entries[rng.choice(["x.npy", "momentum/.npy", "../a.npy", "a\n.npy", "metadata"])] = array
    return zip_of(entries, rng.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED]))


def with_metadata(rng: random.Random, content: bytes) -> bytes:
    """Fields of the metadata with other values, lost, or not JSON."""
    entries = entries_of(content)
    array = entries["metadata.npy"]
    text = array[10 + int.from_bytes(array[8:10], "little") :].decode("utf-32-le")
    if rng.random() < 0.2:
        letters = list(text)
        for _ in range(rng.choice([1, 2, 8])):
            letters[rng.randrange(len(letters))] = rng.choice('{}[]",:019eE-+.\\ua\0\ud800\U0001f469')
        text = "".join(letters)
    elif rng.random() < 0.1:
        text = rng.choice(
            ["[" * 5000, '{"a":' * 5000, "9" * 5000, "", "null", "1", '"x"', text[: rng.randrange(len(text))]]
        )
    else:
        document = json.loads(text)
        for _ in range(rng.choice([1, 1, 2])):
            change_somewhere(rng, document)
        text = json.dumps(document)
    return zip_of({**entries, "metadata.npy": text_entry(text)})


def change_somewhere(rng: random.Random, document: dict) -> None:
    """Replace, delete, double or rename a value of a JSON document, at any depth."""
    holder, key = document, rng.choice(list(document))
    while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.7:
        holder = holder[key]
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    kind = rng.randrange(6)
    if kind < 4:
        holder[key] = rng.choice(VALUES)
    elif kind == 4:
        del holder[key]
    elif isinstance(holder, dict):
        holder[rng.choice(["", "x", "step", "\x1b"])] = holder.pop(key)
    else:
        holder.append(holder[key])


def try_checkpoint(path: Path) -> None:
    """What predict and train --resume do with a checkpoint."""
    found = load_checkpoint(path)
    assert_sound(found)
    load_detector(path)
    keeper = the_run(path)
    keeper.restore(note=lambda line: None)


def assert_sound(found: Checkpoint) -> None:
    assert type(found.step) is int and 0 <= found.step <= 2**53 and type(found.seed) is int
    assert len(found.class_names) == len(found.category_ids) == len(set(found.class_names))
    assert all(type(i) is int for i in found.category_ids) and from_dict(found.config, "it")
    for name in found.class_names:
        assert isinstance(name, str) and one_line(name) == name and name
    for name, array in (found.parameters | found.momentum).items():
        assert array.dtype.kind == "f" and np.isfinite(array).all() and name in found.parameters


def checkpoint(rng: random.Random, good: bytes, path: Path) -> str:
    """A mutation of a good checkpoint, tried."""
    mutate = rng.choice([with_bits, with_header, with_metadata])
    path.write_bytes(mutate(rng, good))
    return f"{mutate.__name__} {watched(partial(try_checkpoint, path))}"


# TOML


def toml(rng: random.Random, good: bytes, path: Path) -> str:
    """A mutation of a file of all options, or of a setting, tried."""
    if rng.random() < 0.2:
        names = [f"{section}.{name}" for section, entries in to_dict(Config()).items() for name in entries]
        setting = f"{rng.choice([*names, 'a.' * 50_000, chr(27)])}={rng.choice(OPTIONS)}"
        return f"set {watched(lambda: written_and_read(with_settings(Config(), [setting]), path))}"
    if rng.random() < 0.3:
        content = with_bits(rng, good)
    else:
        lines = good.decode().split("\n")
        for _ in range(rng.choice([1, 1, 2, 5])):
            place = rng.randrange(len(lines))
            if rng.random() < 0.6:
                lines[place] = f"{lines[place].partition('=')[0]}= {rng.choice(OPTIONS)}"
            else:
                lines[place] = rng.choice([*LINES, "", *lines])
        content = "\n".join(lines).encode("utf-8", "surrogatepass")
    path.write_bytes(content)
    return f"file {watched(lambda: written_and_read(read_config(str(path)), path))}"


def written_and_read(config: Config, path: Path) -> None:
    path.write_bytes(to_toml(config).encode("utf-8"))
    assert read_config(str(path)) == config


def main(kind: str, first: int, count: int, directory: Path) -> None:
    """Try mutations by their numbers, each a seed of its own."""
    limit_memory()
    tiny_networks()
    path = directory / {"checkpoint": "checkpoint.npz", "toml": "mine.toml"}[kind]
    if kind == "checkpoint":
        the_run(path).save()
        good = path.read_bytes()
    else:
        good = to_toml(Config()).encode()
    counts: Counter[str] = Counter()
    for number in range(first, first + count):
        try:
            counts[globals()[kind](random.Random(f"{kind} {number}"), good, path)] += 1
        except BaseException:
            print(f"mutation {number}, left at {path}", file=sys.stderr)
            raise
    assert [entry.name for entry in directory.iterdir()] == [path.name]
    print(json.dumps(counts, sort_keys=True))


def limit_memory() -> None:
    """1 GB more than what is taken by now."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    status = Path("/proc/self/statm")
    taken = int(status.read_text().split()[0]) * resource.getpagesize() if status.exists() else 4 * MEMORY
    with suppress(ValueError):  # macOS accepts no such limit
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
