from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid

from raylens.cli.processes import find_marked, wait_for_exit

DAEMONIZE = "import subprocess; subprocess.Popen(['sleep', '60'], start_new_session=True)"


def start_daemon(mark: str) -> None:
    environment = {**os.environ, "A_MARK": mark}
    subprocess.run([sys.executable, "-c", DAEMONIZE], env=environment, check=True)


def test_a_daemon_is_found_by_its_mark_and_killed_after_the_timeout() -> None:
    mark = uuid.uuid4().hex
    start_daemon(mark)
    (daemon,) = find_marked("A_MARK", mark)
    assert daemon.name() == "sleep"
    started = time.monotonic()
    wait_for_exit("A_MARK", mark, timeout_s=0.3)
    assert time.monotonic() - started >= 0.3
    daemon.wait(10)
    assert find_marked("A_MARK", mark) == []


ERASE_FIRST_VARIABLE = """
import ctypes, time
environ = ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), "environ")
ctypes.memset(environ[0], 0, len(ctypes.string_at(environ[0])))
print("erased", flush=True)
time.sleep(60)
"""


def test_a_process_that_has_overwritten_the_start_of_its_environment_is_found() -> None:
    mark = uuid.uuid4().hex
    environment = {"FIRST": "overwritten", **os.environ, "A_MARK": mark}
    command = [sys.executable, "-c", ERASE_FIRST_VARIABLE]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert [found.pid for found in find_marked("A_MARK", mark)] == [process.pid]
        wait_for_exit("A_MARK", mark, timeout_s=0)


def test_processes_that_end_by_themselves_are_only_waited_for() -> None:
    mark = uuid.uuid4().hex
    start_daemon(mark)
    (daemon,) = find_marked("A_MARK", mark)
    daemon.terminate()
    started = time.monotonic()
    wait_for_exit("A_MARK", mark, timeout_s=60)
    assert time.monotonic() - started < 30
    assert find_marked("A_MARK", mark) == []


def test_processes_without_the_mark_are_left_alone() -> None:
    other = uuid.uuid4().hex
    start_daemon(other)
    wait_for_exit("A_MARK", uuid.uuid4().hex, timeout_s=0)
    (daemon,) = find_marked("A_MARK", other)
    daemon.kill()
