"""How a command ends when it is stopped, and when it reads an end of file."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import signal, time, masters.cli.main as main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it

@main.app.command()
def wait() -> None:
    print("ready", flush=True)
    time.sleep(600)

@main.app.command()
def end() -> None:
    raise EOFError("Ran out of input")

main.main()
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_says_how_to_continue(how: int) -> None:
    running = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert running.stdout and running.stdout.readline() == "ready\n"
    running.send_signal(how)
    _, errors = running.communicate(timeout=60)
    line = "masters: interrupted; finished work is kept: run the same command to continue\n"
    assert (running.returncode, errors) == (130, line)


def test_an_end_of_file_is_named() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, "end"], capture_output=True, text=True)
    assert done.returncode == 1 and "masters: EOFError: Ran out of input" in done.stderr
