"""Processes whose parent ends without a chance to end them."""

import os
import signal
import time

import jobs
import pytest

WATCHED = """
import multiprocessing, os, time
from walt import children
children.POLL_SECONDS = 0.05
def child(parent):
    children.end_with(parent)
    time.sleep(30)
process = multiprocessing.get_context("fork").Process(target=child, args=(os.getpid(),))
process.start()
print(process.pid, flush=True)
"""
TOLD_TWICE = """
import multiprocessing, time
from walt.training.preemption import StopSignal
with StopSignal(ends=False):
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
    process.start()
    print(process.pid, flush=True)
    time.sleep(30)
"""


@pytest.mark.parametrize("end", ["os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_a_child_ends_with_its_parent_however_that_ends(end):
    [process] = jobs.start(["-c", f"{WATCHED}\ntime.sleep(0.3)\n{end}"], 1)
    pid = int(process.stdout.readline())
    assert not jobs.is_gone(pid)
    assert process.wait(20) in (3, -signal.SIGKILL)
    jobs.wait_until_gone(pid)


def test_a_second_signal_ends_the_children_too():
    [process] = jobs.start(["-c", TOLD_TWICE], 1)
    pid = int(process.stdout.readline())
    for _ in range(2):
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.2)
    assert process.wait(20) == 75
    jobs.wait_until_gone(pid)
