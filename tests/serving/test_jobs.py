"""Jobs, with work that samples nothing."""

import threading

import numpy as np
import pytest

from walt.generation.watching import Moment, watcher
from walt.serving.jobs import Busy, Done, Jobs, Progress, Stopped, Waiting

PREVIEW = np.zeros((1, 2, 4, 4, 3), np.uint8)


def steps(count, total, before=lambda step: None):
    for step in range(1, count + 1):
        before(step)
        watcher().see(Moment(step, total, lambda: PREVIEW))


def test_a_job_says_where_it_is_and_what_it_has_made():
    def work():
        steps(3, 3)
        steps(2, 2)
        return "video"

    *news, last = Jobs(4).run("a", work, 1)
    assert [(now.part, now.step, now.steps) for now in news] == [(1, 1, 3), (1, 2, 3), (2, 1, 2)]
    assert all(isinstance(now, Progress) and now.preview.shape == (2, 4, 4, 3) for now in news)
    assert last == Done("video")


def test_what_work_raises_comes_out():
    def work():
        raise KeyError("x")

    with pytest.raises(KeyError):
        list(Jobs(4).run("a", work, 1))


def test_a_stopped_job_ends_at_its_next_step_and_others_go_on():
    jobs = Jobs(4)

    def work():
        while True:
            steps(1, 2)

    running = jobs.run("a", work, 1)
    assert next(running).step == 1
    assert not jobs.stop("b") and jobs.stop("a")
    with pytest.raises(Stopped):
        for _ in running:
            pass
    assert not jobs.stop("a")
    assert list(jobs.run("a", lambda: 1, 1)) == [Done(1)]


def test_one_at_a_time_and_who_waits_can_be_stopped():
    jobs, let, busy, most = Jobs(4), threading.Event(), [], []

    def work():
        busy.append(1)
        most.append(len(busy))
        steps(1, 2)
        let.wait(30)
        busy.pop()
        return "done"

    first, begun = jobs.run("a", work, 1), []
    assert next(first).step == 1
    waits = [threading.Thread(target=lambda name=name: begun.append(_outcome(jobs, name, work))) for name in "bc"]
    for thread in waits:
        thread.start()
    while not jobs.stop("b"):
        pass
    let.set()
    assert list(first)[-1] == Done("done")
    for thread in waits:
        thread.join(30)
    assert sorted(begun) == ["done", "stopped"] and max(most) == 1


def _outcome(jobs, name, work):
    try:
        return list(jobs.run(name, work, 1))[-1].result
    except Stopped:
        return "stopped"


def test_jobs_come_in_their_order_and_too_many_are_refused():
    jobs, let, order = Jobs(2), threading.Event(), []
    first = jobs.run("a", lambda: let.wait(30), 1)
    threads = [threading.Thread(target=list, args=(first,))]
    threads[0].start()
    for number in (1, 2):
        while len(jobs._stops) < number:
            pass
        waits = jobs.run(f"w{number}", lambda number=number: order.append(number), 1)
        assert next(waits) == Waiting(number)
        threads.append(threading.Thread(target=list, args=(waits,)))
        threads[-1].start()
    with pytest.raises(Busy, match="2 requests are waiting already"):
        next(jobs.run("d", lambda: 1, 1))
    let.set()
    for thread in threads:
        thread.join(30)
    assert order == [1, 2] and not jobs.stop()


def test_who_goes_away_stops_the_work():
    jobs, ended = Jobs(4), threading.Event()

    def work():
        try:
            while True:
                steps(1, 2)
        finally:
            ended.set()

    running = jobs.run("a", work, 1)
    next(running)
    running.close()
    assert ended.wait(30) and not jobs.stop("a")
