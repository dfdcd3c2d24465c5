"""How long clients wait for answers."""

import threading
import time
from contextlib import contextmanager


class Waits:
    """The longest time without an answer, over everybody who waits for one."""

    def __init__(self):
        self._lock = threading.Lock()
        self._open = {}  # who: since when
        self._flows = set()
        self.longest = 0.0
        self.who = "nobody"

    @contextmanager
    def answer(self, who):
        """What is done in here is one wait, by whomever it is given up."""
        key = (who, object())
        with self._lock:
            self._open[key] = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                since = self._open.pop(key)
            self.saw(who, time.monotonic() - since)

    @contextmanager
    def flow(self, who):
        """Many requests under way at once; what is due at the end was waited for too."""
        flow = Flow(self, who)
        with self._lock:
            self._flows.add(flow)
        try:
            yield flow
        finally:
            with self._lock:
                self._flows.remove(flow)
            self.saw(who, flow.waiting())

    def saw(self, who, seconds):
        """A wait of that many seconds is over."""
        with self._lock:
            if seconds > self.longest:
                self.longest, self.who = seconds, who

    def oldest(self):
        """(seconds, who) of the wait that has lasted longest and is not over."""
        now = time.monotonic()
        with self._lock:
            waits = [(now - since, who) for (who, _), since in self._open.items()]
            waits += [(flow.waiting(), flow.who) for flow in self._flows]
        return max(waits, default=(0.0, "nobody"))


class Flow:
    """Requests under way at once: what counts is the time in which none of them is answered."""

    def __init__(self, waits, who):
        self._waits, self.who = waits, who
        self.due = 0
        self._since = 0.0

    def sent(self):
        """One more is under way."""
        if self.due == 0:
            self._since = time.monotonic()
        self.due += 1

    def answered(self):
        """One came back, whatever it says."""
        now = time.monotonic()
        self._waits.saw(self.who, now - self._since)
        self._since = now
        self.due -= 1

    def waiting(self):
        """For how long none has come back that is due."""
        return time.monotonic() - self._since if self.due > 0 else 0.0
