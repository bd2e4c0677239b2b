"""The end of a program while loops of daemon threads are busy with us."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = 4

PROGRAM = """
import asyncio, sys, threading, time
from millrace import Error, IoEngine, IoSettings, TimeoutWheel

class Last:
    # Goes when the interpreter takes its modules apart, and gives the others time to run into it.
    def __del__(self, sleep=time.sleep):
        sleep(0.05)

last = Last()
busy = threading.Semaphore(0)

def linger():
    busy.release(10)
    for _ in range(5000):
        time.sleep(0.001)

async def callbacks():
    # Code of the program that is called by the wheel, takes long, and lets others in all the time.
    wheel = TimeoutWheel()
    wheel.call_later(0, linger)
    await asyncio.Event().wait()

async def limits():
    # Blocks that expire, and blocks that do not: the loop is asked for something all the time.
    wheel = TimeoutWheel()
    while True:
        async with wheel.timeout(60.0):
            await wheel.sleep(0.0001)
        try:
            async with wheel.timeout(0.0001):
                await asyncio.Event().wait()
        except TimeoutError:
            busy.release()

async def scopes():
    # Scopes end, and what they held is swept and goes.
    wheel = TimeoutWheel()
    while True:
        with wheel.scope() as scope:
            for _ in range(50):
                scope.call_later(10.0, int, object())
        await asyncio.sleep(0)
        busy.release()

async def failures():
    # The handler of the loop is code of the program, too.
    wheel = TimeoutWheel()
    loop = asyncio.get_running_loop()
    def handler(loop, context):
        linger()
    loop.set_exception_handler(handler)
    wheel.call_later(0, int, "no number")
    await asyncio.Event().wait()

async def files(driver):
    io = IoEngine(settings=IoSettings(driver=driver))
    try:
        while True:
            await asyncio.gather(*(io.stat("/") for _ in range(20)))
            busy.release()
    except Error:
        # The exit has closed it.
        await asyncio.Event().wait()

async def thread():
    await files("thread")

async def guest():
    await files("loop")

main = globals()[sys.argv[1]]
threading.Thread(target=asyncio.run, args=(main(),), daemon=True).start()
for _ in range(10):
    busy.acquire()
"""


@pytest.mark.parametrize("what", ["callbacks", "limits", "scopes", "failures", "thread", "guest"])
def test_a_daemon_thread_does_not_abort_the_exit(what: str) -> None:
    # Belief: a daemon thread is ended wherever it is, and the program ends as if it were not there.
    program = textwrap.dedent(PROGRAM)
    command = [sys.executable, "-W", "ignore", "-c", program, what]
    for _ in range(ROUNDS):
        ended = subprocess.run(command, capture_output=True, check=False, text=True, timeout=60)
        assert (ended.returncode, ended.stderr) == (0, "")


HANDLER = """
import asyncio, atexit, sys, threading
loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()

def close():
    print(asyncio.run_coroutine_threadsafe(closing(), loop).result(30))

atexit.register(close)  # before the import: so it is called after what the package has registered
import millrace

async def wheel():
    wheel = millrace.TimeoutWheel()
    await wheel.sleep(0.001)
    async def closing():
        await wheel.sleep(0.001)
        return "closed"
    return closing

async def gc():
    gc = millrace.EpochGC()
    async def closing():
        gc.defer(int)
        await gc.quiesce()
        return "closed"
    return closing

async def log():
    log = await millrace.Log.open(sys.argv[2])
    async def closing():
        await log.close()
        return "closed"
    return closing

closing = asyncio.run_coroutine_threadsafe(globals()[sys.argv[1]](), loop).result()
"""


@pytest.mark.parametrize("what", ["wheel", "gc", "log"])
def test_a_late_handler_of_the_exit_still_gets_answers(what: str, tmp_path: Path) -> None:
    # Belief: a loop on a daemon thread is served until the interpreter ends, so a handler that was
    # registered before the package was imported can wait for it.
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(HANDLER), what]
    command.append(os.fspath(tmp_path / "log"))
    ended = subprocess.run(command, capture_output=True, check=False, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "closed\n", "")
