"""The loop over futures that a drain calls once; a call per future from Rust costs more."""

from asyncio import InvalidStateError


def resolve(futures, values):
    """Give each future its value. One that was cancelled meanwhile is passed over."""
    pairs = zip(futures, values)
    while True:
        try:
            for future, value in pairs:
                future.set_result(value)
            return
        except InvalidStateError:
            continue


def fail(futures, errors):
    """Give each future its exception. One that was cancelled meanwhile is passed over."""
    for future, error in zip(futures, errors):
        if not future.done():
            future.set_exception(error)
