"""Damaged files of weights, made from good ones, and their judge; see `hostile`, whose bounds hold here.

``python -m tests.hostile_weights zip.pth 0 1000 DIRECTORY`` tries mutations 0 to 999 of that file.
"""

import json
import random
import struct
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from minimask.config import Config, to_dict
from minimask.weights import read_weights, write_pth, write_safetensors
from minimask.weights.checkpoint import Checkpoint, save_checkpoint
from minimask.weights.pickles import OPCODES
from tests.hostile import change_somewhere, entries_of, limit_memory, watched, with_bits, zip_of

CHECKPOINTS = Path(__file__).parent / "reference" / "checkpoints"
GOOD = ("zip.pth", "legacy.pth", "training_checkpoint.pth", "detectron2.pkl", "ours.pth", "ours.safetensors")
GOOD += ("ours.npz",)
SIZES = (0, 1, -1, 127, 128, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**62, 2**63 - 1)


def good(name: str, directory: Path) -> bytes:
    """A sound file of this kind."""
    if (CHECKPOINTS / name).exists():
        return (CHECKPOINTS / name).read_bytes()
    rng, path = np.random.default_rng(0), directory / name
    arrays = {f"layer{i}.weight": rng.normal(size=(4, 3, i + 1)).astype(np.float32) for i in range(5)}
    if name == "ours.pth":
        write_pth(path, arrays | {"steps": np.array(3), "mask": np.array([True, False])})
    elif name == "ours.safetensors":
        write_safetensors(path, arrays | {"half": np.ones(3, np.float16)}, {"class_names": '["cell"]'})
    else:
        save_checkpoint(
            path, Checkpoint(arrays, config=to_dict(Config()), class_names=["a"], category_ids=[1])
        )
    return path.read_bytes()


def with_program(rng: random.Random, content: bytes) -> bytes:
    """Opcodes, lengths and names of a pickle changed, in a zip with right checksums if it was in one."""
    entries = entries_of(content) if content[:2] == b"PK" else {"": content}
    names = [name for name in entries if name == "" or name.endswith("data.pkl")]
    if not names:
        return with_bits(rng, content)
    program = bytearray(entries[names[0]])
    head = min(len(program), 2000)  # behind it, a legacy file and a .pkl have numbers
    for _ in range(rng.choice([1, 1, 2, 6])):
        place, kind = rng.randrange(head), rng.randrange(5)
        if kind == 0:
            program[place : place + 1] = rng.choice(list(OPCODES))
        elif kind == 1:
            program[place:place] = rng.choice(list(OPCODES)) * rng.choice([1, 2, 300])
        elif kind == 2:
            program[place : place + 4] = struct.pack("<q", rng.choice(SIZES))[:4]
        elif kind == 3:
            program[place : place + 9] = b"\x8a\x08" + struct.pack("<q", rng.choice(SIZES))[:7]
        else:
            start, length = rng.randrange(head), rng.choice([1, 10, 100])
            program[place:place] = program[start : start + length]
    if names == [""]:
        return bytes(program)
    return zip_of(entries | {names[0]: bytes(program)})


def with_entries(rng: random.Random, content: bytes) -> bytes:
    """A zip with other entries, or another order of bytes."""
    if content[:2] != b"PK":
        return with_bits(rng, content)
    entries = entries_of(content)
    name, kind = rng.choice(list(entries)), rng.randrange(5)
    if kind == 0:
        del entries[name]
    elif kind == 1:
        entries[name] = entries[name] + bytes(rng.choice([1, 8, 1000]))
    elif kind == 2:
        entries[name] = entries[name][: len(entries[name]) // 2]
    elif kind == 3:
        entries[rng.choice(["x/data.pkl", "data.pkl", "/", "a" * 60_000, "x.npy", "\x1b"])] = entries[name]
    return zip_of(entries, zipfile.ZIP_DEFLATED if kind == 4 else zipfile.ZIP_STORED)


def with_table(rng: random.Random, content: bytes) -> bytes:
    """A safetensors file with another header."""
    if content[8:9] != b"{":
        return with_bits(rng, content)
    end = 8 + struct.unpack("<Q", content[:8])[0]
    table = json.loads(content[8:end])
    for _ in range(rng.choice([1, 1, 2])):
        if rng.random() < 0.5 and isinstance(table.get("layer1.weight"), dict):
            table["layer1.weight"][rng.choice(["shape", "data_offsets"])] = rng.choices(
                SIZES, k=rng.choice([1, 2, 3])
            )
        else:
            change_somewhere(rng, table)
    text = json.dumps(table).encode("utf-8", "replace")
    return struct.pack("<Q", len(text)) + text + content[end:]


def try_weights(path: Path) -> None:
    weights = read_weights(path)
    assert weights and all(type(array) is np.ndarray for array in weights.values())
    # What is read can be looked at: no view of memory that is not the array's.
    assert all(
        array.flags.c_contiguous and len(array.tobytes()) == array.nbytes for array in weights.values()
    )


def main(name: str, first: int, count: int, directory: Path) -> None:
    """Try mutations by their numbers, each a seed of its own."""
    sound, path = good(name, directory), directory / name
    limit_memory()
    mutations: tuple[Callable, ...] = (with_bits, with_bits, with_program, with_entries, with_table)
    counts: Counter[str] = Counter()
    longest = 0.0
    for number in range(first, first + count):
        rng = random.Random(f"{name} {number}")
        path.write_bytes(rng.choice(mutations)(rng, sound))
        began = time.process_time()
        try:
            counts[watched(partial(try_weights, path))] += 1
        except BaseException:
            print(f"mutation {number}, left at {path}", file=sys.stderr)
            raise
        longest = max(longest, time.process_time() - began)
    print(f"the longest took {longest:.3f} s of computing", file=sys.stderr)
    assert [entry.name for entry in directory.iterdir()] == [path.name]
    print(json.dumps(counts, sort_keys=True))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
