"""The tree of exceptions."""

from __future__ import annotations

import errno
import inspect
import os
import pickle

import pytest

from millrace import errors

_CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, Exception)
]


@pytest.mark.parametrize("kind", _CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_is_in_the_tree_and_says_what_to_do(kind: type[errors.Error]) -> None:
    # One root, a docstring each, and all of them can be built, shown and pickled.
    assert issubclass(kind, errors.Error)
    assert inspect.getdoc(kind)
    error = kind("it broke", errno=28, path="/x", lsn=7, odd="fact")
    assert (error.errno, error.path, error.lsn, error.offset) == (28, "/x", 7, None)
    assert str(error) == "it broke [errno=28, path=/x, lsn=7, odd=fact]"
    assert error.message == "it broke"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.facts) == (str(error), error.facts)
    assert str(kind()) == ""


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_an_error_number_is_caught_by_pythons_own_class(number: int) -> None:
    # What Python raises for a number catches ours, with the attributes that code looks at.
    error = errors.IoError("open failed", errno=number, path="/x")
    builtin = type(OSError(number, ""))
    is_about_processes = builtin in {ChildProcessError, ProcessLookupError}
    assert isinstance(error, OSError if is_about_processes else builtin)
    assert isinstance(error, errors.IoError)
    assert (error.errno, error.strerror, error.filename) == (number, os.strerror(number), "/x")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (again.errno, again.strerror, again.filename) == (number, os.strerror(number), "/x")


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.IoTimeout, TimeoutError),
        (errors.OverloadedError, BlockingIOError),
        (errors.LockedError, BlockingIOError),
        (errors.TooLargeError, ValueError),
        (errors.IoError, OSError),
        (errors.NoSpaceError, OSError),
        (errors.ForkedError, RuntimeError),
        (errors.LogPoisonedError, errors.PoisonedError),
    ],
)
def test_builtins_catch_what_they_would(kind: type, builtin: type) -> None:
    # Somebody who knows only Python's own exceptions catches ours where they would expect it.
    assert issubclass(kind, builtin)
