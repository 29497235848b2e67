"""How other people's text is printed: in one line, without raw control characters."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimask.errors import InputError, one_line

NAMES = [
    "nucleus",
    "Zellkern ü",
    "细胞核",
    "全角\u3000空白",
    "क्ष",
    "\U0001f469\u200d\U0001f52c",
    "a\\nb",
    "C:\\new",
]


@pytest.mark.parametrize("text", NAMES)
def test_a_name_in_any_script_stays_as_it_is(text):
    assert one_line(text) == text


@pytest.mark.parametrize(
    "text, shown",
    [
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x00\x7f\x9b", r"\x00\x7f\x9b"),
        ("caf\udce9.png", r"caf\xe9.png"),  # a file name in Latin-1, as Python has it
        ("\ud800", r"\ud800"),
        ("a\u2028b", r"a\u2028b"),
        ("gnp\u202e.exe", r"gnp\u202e.exe"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text, shown):
    assert one_line(text) == shown
    assert str(InputError(f"{text}: is bad")) == f"{shown}: is bad"


@given(st.text(), st.integers(10, 60))
def test_any_text_is_one_line_of_bounded_length_and_the_second_pass_changes_nothing(text, most):
    shown = one_line(text, most)
    assert len(shown) <= most and len(shown.splitlines()) <= 1 and one_line(shown, most) == shown
    one_line(text).encode("utf-8")  # no surrogate is left


def test_a_long_text_keeps_beginning_and_end():
    assert one_line("a" * 500 + "b" * 500, 13) == "aaaaa...bbbbb"


def test_an_error_can_be_sent_to_another_process():
    assert str(pickle.loads(pickle.dumps(InputError("a\nb")))) == r"a\nb"
