"""What a pickle says, found out without obeying it.

A pickle is a program for a machine with one stack: most opcodes push a number or a text, or gather what was
pushed into tuples, lists and dicts. Two make it dangerous. GLOBAL names any function of any module, and
REDUCE calls it: ``os.system`` with a text, and whoever opens the file has run that command. A state dict
needs only a dozen names, so this machine has them in a table, each with a function of ours that gets the
arguments as data. A name is a text that is never looked up in a module; a name that the table lacks ends the
reading before it can be called. Python's own `pickle`, which imports what it is told to, is not used.

``python -m pickletools FILE`` prints such a program. `calls.py` has the table, and `torch_files.py` says
where in a ``.pth`` the program is.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

from minimask.errors import one_line
from minimask.weights.raw import Refusal, damaged, take

# Real files have some 30 opcodes per tensor. These bound what a program takes besides its own bytes.
_OPCODES_MOST = 2_000_000
_NESTING_MOST = 100
_INTEGER_MOST = 16  # bytes; the longest that torch writes has ten
_NAME_MOST = 500  # bytes of a global's line
# Longer texts stay bytes: no name is that long, while protocol 2 writes the bytes of an array as text.
_TEXT_MOST = 1 << 16
_KEY_MOST = 2**53  # of a dict, if it is an integer; the hashes of larger ones can be made to collide

Row = Callable[[tuple], Any]


@dataclass(frozen=True)
class Name:
    """A global that a pickle names, ``module.attribute``: a text and nothing more."""

    text: str


class Shell:
    """An object made by a row of the table, to which BUILD gives its state."""

    def build(self, state: Any) -> None:
        """Take over the state, or raise a Refusal."""
        raise NotImplementedError


class Machine:
    """Runs one pickle.

    Parameters
    ----------
    file : binary file
        The program begins at its current position.
    end : int
        The position after the last byte that may be read.
    rows : mapping of str to callable
        By the names that the program may use: our functions, each of which gets the tuple of arguments.
    persistent : callable, optional
        Gets the program's reference to an object stored elsewhere (BINPERSID), and returns what stands for
        it.
    """

    def __init__(
        self,
        file: IO[bytes],
        end: int,
        rows: Mapping[str, Row],
        persistent: Callable[[Any], Any] | None = None,
    ):
        self.file, self.end, self.rows, self.persistent = file, end, rows, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each MARK
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The object that the program makes: dicts, lists, tuples, texts, numbers, and what rows return.

        Raises
        ------
        Refusal
            If it names anything else, or is not a sound program.
        """
        for _ in range(_OPCODES_MOST):
            code = self.file.read(1)
            if code == b".":  # STOP
                if self.below or len(self.stack) != 1:
                    raise damaged("its pickle stops in the middle")
                return self.stack[0]
            if code not in OPCODES:
                raise self._unknown(code)
            handle, operand = OPCODES[code]
            handle(self, operand)
        raise Refusal(f"its pickle has more than {_OPCODES_MOST:,} opcodes; save the state_dict() alone")

    def pop(self) -> Any:
        if not self.stack:
            raise damaged("its pickle takes from an empty stack")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        """What was pushed since the last MARK."""
        if not self.below:
            raise damaged("its pickle looks for a mark that is not there")
        items, self.stack = self.stack, self.below.pop()
        return items

    def number(self, form: str) -> Any:
        """A number that follows in the program itself, in a `struct` format."""
        return struct.unpack(form, take(self.file, struct.calcsize(form), self.end))[0]

    def name(self, module: str, attribute: str) -> Name:
        """The name, if the table has it; else a Refusal."""
        text = f"{module}.{attribute}"
        if text not in self.rows:
            raise not_in_the_table(text)
        return Name(text)

    def line(self) -> str:
        """The rest of the program's line, which is how GLOBAL writes its names."""
        content = self.file.readline(_NAME_MOST)
        if not content.endswith(b"\n"):
            raise damaged("a name in its pickle does not end")
        return content[:-1].decode("utf-8", "backslashreplace")

    def _unknown(self, code: bytes) -> Refusal:
        if not code:
            return damaged("its pickle ends early")
        if code == b"i":  # INST: a call, its names written as GLOBAL writes them
            return not_in_the_table(f"{self.line()}.{self.line()}")
        return Refusal(
            f"its pickle has the opcode {repr(code)[1:]}, which weights never need; nothing was run. If the "
            "file is sound, save its weights again with torch.save"
        )


def not_in_the_table(text: str) -> Refusal:
    """The refusal of a pickle that uses a name not in the table."""
    module, _, attribute = text.rpartition(".")
    asks = f"asks for {one_line(text, 150)}, which weights never need; nothing was run"
    if attribute[:1].isupper() and module.split(".")[0] not in sys.stdlib_module_names:
        return Refusal(
            f"{asks}. A pickled model needs the code of its classes: where you have it, save the weights "
            'alone, torch.save(model.state_dict(), "weights.pth")'
        )
    return Refusal(f"{asks}. Open it by no other means, and take the weights from elsewhere")


# The opcodes: each function gets the machine and the operand beside it in the table below.


def _push(machine: Machine, value: Any) -> None:
    machine.stack.append(value)


def _push_new(machine: Machine, kind: type) -> None:
    machine.stack.append(kind())


def _push_number(machine: Machine, form: str) -> None:
    machine.stack.append(machine.number(form))


def _push_integer(machine: Machine, form: str) -> None:
    size = machine.number(form)
    if not 0 <= size <= _INTEGER_MOST:
        raise Refusal(f"its pickle has an integer of {size:,} bytes, as no weights have; use another file")
    machine.stack.append(int.from_bytes(take(machine.file, size, machine.end), "little", signed=True))


def _push_text(machine: Machine, form: str) -> None:
    content = take(machine.file, machine.number(form), machine.end)
    if len(content) > _TEXT_MOST:
        return machine.stack.append(content)
    try:
        machine.stack.append(content.decode("utf-8", "surrogatepass"))
    except UnicodeDecodeError as error:
        raise damaged("a text in its pickle is not UTF-8") from error


def _push_bytes(machine: Machine, form: str) -> None:
    machine.stack.append(take(machine.file, machine.number(form), machine.end))


def _push_old_text(machine: Machine, form: str) -> None:
    """From Python 2, which had one type for texts and bytes: short ones are taken for texts."""
    size = machine.number(form)
    if size < 0:
        raise damaged(f"a text of {size:,} bytes")
    content = take(machine.file, size, machine.end)
    machine.stack.append(content.decode("latin-1") if size <= 255 else content)


def _mark(machine: Machine, _: None) -> None:
    if len(machine.below) >= _NESTING_MOST:
        raise damaged(f"its pickle is nested more than {_NESTING_MOST} deep")
    machine.below.append(machine.stack)
    machine.stack = []


def _tuple(machine: Machine, count: int | None) -> None:
    items = machine.pop_to_mark() if count is None else [machine.pop() for _ in range(count)][::-1]
    machine.stack.append(tuple(items))


def _append(machine: Machine, many: bool) -> None:
    items = machine.pop_to_mark() if many else [machine.pop()]
    target = machine.stack[-1] if machine.stack else None
    if type(target) is not list:
        raise damaged("its pickle appends to what is not a list")
    target += items


def _set_items(machine: Machine, many: bool) -> None:
    items = machine.pop_to_mark() if many else [machine.pop(), machine.pop()][::-1]
    target = machine.stack[-1] if machine.stack else None
    if type(target) is not dict or len(items) % 2:
        raise damaged("its pickle sets an entry of what is not a dict")
    set_items(target, zip(items[::2], items[1::2]))


def set_items(target: dict, pairs: Any) -> None:
    """Enter the pairs one by one; each key must be a text or an integer.

    Tuples as keys could be nested so that their hash takes for ever; floats and large integers could be
    chosen to share one hash.
    """
    for key, value in pairs:
        if type(key) is not str and not (type(key) is int and abs(key) < _KEY_MOST):
            raise Refusal(
                f"has a dict with a key that is {_kind(key)}, but weights have texts; save the state_dict() "
                "alone"
            )
        target[key] = value


def _kind(value: Any) -> str:
    return "too large an integer" if type(value) is int else f"of type {type(value).__name__}"


def _remember(machine: Machine, form: str | None) -> None:
    key = len(machine.memo) if form is None else machine.number(form)
    if not machine.stack:
        raise damaged("its pickle remembers what is not there")
    machine.memo[key] = machine.stack[-1]


def _recall(machine: Machine, form: str) -> None:
    key = machine.number(form)
    if key not in machine.memo:
        raise damaged("its pickle recalls what it has not remembered")
    machine.stack.append(machine.memo[key])


def _global(machine: Machine, _: None) -> None:
    machine.stack.append(machine.name(machine.line(), machine.line()))


def _stack_global(machine: Machine, _: None) -> None:
    attribute, module = machine.pop(), machine.pop()
    if type(module) is not str or type(attribute) is not str:
        raise damaged("its pickle has a name that is not a text")
    machine.stack.append(machine.name(module, attribute))


def _call(machine: Machine, _: None) -> None:
    arguments, name = machine.pop(), machine.pop()
    if type(name) is not Name or type(arguments) is not tuple:
        raise damaged("its pickle calls what has no name")
    machine.stack.append(machine.rows[name.text](arguments))


def _build(machine: Machine, _: None) -> None:
    state = machine.pop()
    target = machine.stack[-1] if machine.stack else None
    if isinstance(target, Shell):
        target.build(state)
    elif type(target) is not dict or type(state) is not dict:
        raise damaged("its pickle gives a state to what has none")
    # else: the _metadata that torch adds to the OrderedDict of a state dict, which we do not need


def _persistent(machine: Machine, _: None) -> None:
    if machine.persistent is None:
        raise Refusal("its pickle refers to something outside it, which is not there; use another file")
    machine.stack.append(machine.persistent(machine.pop()))


def _protocol(machine: Machine, _: None) -> None:
    protocol = machine.number("<B")
    if protocol > 5:
        raise damaged(f"pickle protocol {protocol}, but the last is 5")


def _frame(machine: Machine, _: None) -> None:
    size = machine.number("<Q")  # how much to read at once, which is of no use here
    if size > machine.end - machine.file.tell():
        raise damaged("its pickle ends early")


OPCODES: dict[bytes, tuple[Callable[[Machine, Any], None], Any]] = {
    b"N": (_push, None),
    b"\x88": (_push, True),
    b"\x89": (_push, False),
    b"K": (_push_number, "<B"),  # BININT1, BININT2, BININT, BINFLOAT
    b"M": (_push_number, "<H"),
    b"J": (_push_number, "<i"),
    b"G": (_push_number, ">d"),
    b"\x8a": (_push_integer, "<B"),  # LONG1, LONG4
    b"\x8b": (_push_integer, "<i"),
    b"X": (_push_text, "<I"),  # BINUNICODE, SHORT_BINUNICODE, BINUNICODE8
    b"\x8c": (_push_text, "<B"),
    b"\x8d": (_push_text, "<Q"),
    b"B": (_push_bytes, "<I"),  # BINBYTES, SHORT_BINBYTES, BINBYTES8, BYTEARRAY8
    b"C": (_push_bytes, "<B"),
    b"\x8e": (_push_bytes, "<Q"),
    b"\x96": (_push_bytes, "<Q"),
    b"T": (_push_old_text, "<i"),  # BINSTRING, SHORT_BINSTRING
    b"U": (_push_old_text, "<B"),
    b"]": (_push_new, list),  # EMPTY_LIST, EMPTY_DICT, EMPTY_TUPLE
    b"}": (_push_new, dict),
    b")": (_push_new, tuple),
    b"(": (_mark, None),
    b"t": (_tuple, None),  # TUPLE, from the mark on; TUPLE1, TUPLE2, TUPLE3
    b"\x85": (_tuple, 1),
    b"\x86": (_tuple, 2),
    b"\x87": (_tuple, 3),
    b"a": (_append, False),  # APPEND, APPENDS
    b"e": (_append, True),
    b"s": (_set_items, False),  # SETITEM, SETITEMS
    b"u": (_set_items, True),
    b"q": (_remember, "<B"),  # BINPUT, LONG_BINPUT, MEMOIZE
    b"r": (_remember, "<I"),
    b"\x94": (_remember, None),
    b"h": (_recall, "<B"),  # BINGET, LONG_BINGET
    b"j": (_recall, "<I"),
    b"c": (_global, None),
    b"\x93": (_stack_global, None),
    b"R": (_call, None),  # REDUCE, NEWOBJ: a row of the table, either way
    b"\x81": (_call, None),
    b"b": (_build, None),
    b"Q": (_persistent, None),  # BINPERSID
    b"\x80": (_protocol, None),
    b"\x95": (_frame, None),
}
