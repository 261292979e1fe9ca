"""What is known of the way to one other host, from probes sent and answered: pure.

Owns when which probe is due, when a path counts as broken, and the search for its MTU (in the manner of RFC 8899:
packets of the size in question, not what routers say). Must not know sockets or clocks: `now` is given, in seconds.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Literal

import msgspec

from overlace.model.family import is_six
from overlace.model.paths import ChecksumWord, FragmentWord, PathState, PathWord

SMALL, SMALL6 = 128, 160  # bytes of the outer IP packet of a plain probe
# The smallest size the search tries: what any host takes (RFC 1122 section 3.3.2, RFC 8200 section 5).
FLOOR, FLOOR6 = 576, 1280
WINDOW = 20  # probes that loss and round-trip time are taken from
DOWN_AFTER = 3  # probes in a row without an answer
UP_AFTER = 2
TRIES = 3  # of one size before it counts as too big
LOSSY = 10  # percent
AGAIN = 0.25  # seconds after a loss, and between the steps of a search
GROW = 60.0  # seconds between looks whether the path has become wider
CHECK = 10.0  # seconds between looks at checksums and fragments
FIRST_TIMEOUT, LEAST_TIMEOUT, LONGEST_TIMEOUT = 1.0, 0.5, 2.0

Kind = Literal["echo", "size", "check", "check-plain", "check-slow"]
CHECKS: tuple[Kind, ...] = ("check", "check-plain", "check-slow")


class Probe(msgspec.Struct, frozen=True):
    """`size`: bytes of the outer IP packet. `check` has a checksum left to the network card, `check-plain` none;
    `check-slow` is too large for the path and goes the kernel's own way, in fragments."""

    kind: Kind
    size: int


class Path:
    """`widest`: MTU of this host's own underlay interface; `period`: seconds between plain probes; `checks`: whether
    checksums and fragments are tried."""

    def __init__(
        self, node: str, address: str, widest: int, now: float, period: float = 1.0, *, checks: bool = True
    ) -> None:
        self.node, self.address, self.widest, self.period = node, address, widest, period
        six = is_six(address)
        self._small, self._floor = (SMALL6, FLOOR6) if six else (SMALL, FLOOR)
        self._kinds = CHECKS[:2] if six else CHECKS  # the kernel does not fragment what it tunnels over IPv6
        self.state: PathWord = "new"
        self.checksum: ChecksumWord = ""
        self.fragments: FragmentWord = ""
        self.mtu = 0
        self._out: dict[int, tuple[Probe, float]] = {}  # nonce -> when it is given up
        self._results: deque[bool] = deque(maxlen=WINDOW)
        self._rtts: deque[int] = deque(maxlen=WINDOW)
        self._row = 0  # answers in a row, losses in a row when negative
        self._next_echo = now
        self._next_size = now
        self._next_check = now + 1.0 if checks else math.inf
        self._grow_at = now + GROW
        self._good, self._bad = 0, 0  # of the search; `_bad` 0: none known
        self._searching = True
        self._tries = 0
        self._checks: dict[str, bool] = {}  # the round under way
        self._corrupt = 0  # rounds in a row that spoke of corruption
        self._unmade = 0  # ... of lost fragments

    # -- what to send ----------------------------------------------------------------------------------------

    def due_at(self) -> float:
        """When `plan` or `expire` has something to do next."""
        times = [self._next_echo, *(at for _, at in self._out.values())]
        if self.state in ("ok", "lossy"):
            times += [self._next_size, self._next_check]
        return min(times)

    def timeout(self) -> float:
        if not self._rtts:
            return FIRST_TIMEOUT
        return min(LONGEST_TIMEOUT, max(LEAST_TIMEOUT, 4 * max(self._rtts) / 1e6))

    def plan(self, now: float) -> list[Probe]:
        """What to send now; each is to be announced by `sent`."""
        found: list[Probe] = []
        if now >= self._next_echo:
            found.append(Probe("echo", self._small))
            self._next_echo = now + self.period
        if self.state not in ("ok", "lossy"):
            return found
        if now >= self._next_size and not self._waits_for("size"):
            size = self._size(now)  # a search asks three times at once: a step of it costs one wait
            found += [Probe("size", size)] * (TRIES if self._searching else 1)
            self._next_size = now + (AGAIN if self._searching else 2 * self.period)
        if now >= self._next_check and not any(map(self._waits_for, CHECKS)):
            self._checks = {}
            found += [Probe(c, self.widest + 200 if c == "check-slow" else 256) for c in self._kinds]
            self._next_check = now + CHECK
        return found

    def _waits_for(self, kind: str) -> bool:
        return any(probe.kind == kind for probe, _ in self._out.values())

    def _size(self, now: float) -> int:
        if not self._searching and self.mtu < self.widest and now >= self._grow_at:
            self._grow_at = now + GROW
            self._searching, self._good, self._bad, self._tries = True, self.mtu, 0, 0
            return self.mtu + 1
        if not self._searching:
            return self.mtu
        if not self._bad:
            return self.widest if self._good < self.widest else self._good
        return (max(self._good, self._floor - 1) + self._bad) // 2

    def sent(self, nonce: int, probe: Probe, now: float) -> None:
        self._out[nonce] = (probe, now + self.timeout())

    # -- what comes of it ------------------------------------------------------------------------------------

    def answered(self, nonce: int, rtt: int, now: float) -> bool:
        """`rtt` in microseconds. False: nobody waits for it (any more)."""
        found = self._out.pop(nonce, None)
        if found is None:
            return False
        self._heard(found[0], rtt, now)
        return True

    def expire(self, now: float) -> None:
        """Give up what was not answered in time."""
        for nonce, (probe, at) in list(self._out.items()):
            if now >= at:
                del self._out[nonce]
                self._lost(probe, now)

    def _heard(self, probe: Probe, rtt: int, now: float) -> None:
        if probe.kind in CHECKS:
            self._note_check(probe.kind, True)
            return
        if probe.kind == "size":
            self._fits(probe.size, now)
            return
        self._results.append(True)
        self._rtts.append(rtt)
        self._row = max(1, self._row + 1)
        if self.state == "down" and self._row < UP_AFTER:
            self._next_echo = min(self._next_echo, now + AGAIN)
        else:
            if self.state in ("down", "new"):
                self._results.clear()
                self._results.append(True)
                self._searching, self._good, self._bad, self._tries = True, 0, 0, 0
                self._next_size = now
            self._enter("lossy" if self._loss() >= LOSSY and len(self._results) >= WINDOW // 2 else "ok")

    def _lost(self, probe: Probe, now: float) -> None:
        if probe.kind in CHECKS:
            self._note_check(probe.kind, False)
            return
        if probe.kind == "size":
            self._misses(probe.size, now)
            return
        self._results.append(False)
        self._row = min(-1, self._row - 1)
        if self.state != "down":
            self._next_echo = min(self._next_echo, now + AGAIN / 2)
        if -self._row >= DOWN_AFTER:
            self._enter("down")
        elif self._loss() >= LOSSY and self.state == "ok" and len(self._results) >= WINDOW // 2:
            self._enter("lossy")

    def _enter(self, state: PathWord) -> None:
        self.state = state

    # -- the MTU ---------------------------------------------------------------------------------------------

    def _fits(self, size: int, now: float) -> None:
        self._tries = 0
        if not self._searching:
            return
        self._good = max(self._good, size)
        if self._good >= self.widest or (self._bad and self._bad - self._good <= 1):
            self._settle(self._good)
        else:
            self._next_size = now

    def _misses(self, size: int, now: float) -> None:
        if self._searching and size <= self._good:
            return
        if self._row < 0:  # small ones get lost as well: this says nothing about the size
            return
        self._tries += 1
        self._next_size = now
        if self._tries < TRIES:
            return
        self._tries = 0
        if not self._searching:
            self._searching, self._good = True, 0
        self._bad = size
        if self._bad <= self._floor or self._bad - self._good <= 1:
            self._settle(max(self._good, self._floor))

    def _settle(self, mtu: int) -> None:
        self.mtu, self._searching, self._good, self._bad = mtu, False, 0, 0

    def resize(self, widest: int, now: float) -> None:
        """The interface's own MTU changed: measure again."""
        if widest != self.widest:
            self.widest = widest
            self._searching, self._good, self._bad, self._tries = True, 0, 0, 0
            self._next_size = now

    # -- checksums -------------------------------------------------------------------------------------------

    def _note_check(self, kind: Kind, arrived: bool) -> None:
        """The probes of a round differ from the plain one in one thing each: who computed the checksum, and which way
        they went. All lost is a daemon that is away; one alone, three times in a row, is that thing."""
        self._checks[kind] = arrived
        if len(self._checks) < len(self._kinds):
            return
        if self._checks["check"]:
            self._corrupt = 0
            self.checksum = "mended" if self.checksum in ("bad", "mended") else "ok"
        elif self._checks["check-plain"]:
            self._corrupt += 1
            if self._corrupt >= TRIES:
                self.checksum = "bad"
        if "check-slow" not in self._checks:
            pass
        elif self._checks["check-slow"]:
            self._unmade = 0
            self.fragments = "ok"
        elif self._checks["check-plain"]:
            self._unmade += 1
            if self._unmade >= TRIES:
                self.fragments = "lost"
        if 0 < self._corrupt < TRIES or 0 < self._unmade < TRIES:
            self._next_check = min(self._next_check, self._next_echo)

    # -- the report ------------------------------------------------------------------------------------------

    def _loss(self) -> int:
        return round(100 * self._results.count(False) / len(self._results)) if self._results else 0

    def report(self) -> PathState:
        """`since` is 0: whoever has a clock fills it in."""
        ordered = sorted(self._rtts)
        return PathState(
            node=self.node,
            address=self.address,
            state=self.state,
            loss=100 if self.state == "down" else self._loss(),
            rtt=ordered[len(ordered) // 2] if ordered and self.state != "down" else 0,
            jitter=ordered[len(ordered) * 9 // 10] - ordered[0] if ordered and self.state != "down" else 0,
            mtu=self.mtu,
            checksum=self.checksum,
            fragments=self.fragments,
        )


def is_news(old: PathState | None, new: PathState) -> bool:
    """Whether it is worth telling at once: what people or MTUs depend on."""
    if old is None:
        return True
    return any(
        getattr(old, f) != getattr(new, f)
        for f in ("state", "mtu", "checksum", "fragments", "address", "route")
    )


def has_drifted(old: PathState, new: PathState) -> bool:
    """Whether figures moved enough to be sent with the next report."""
    return abs(old.loss - new.loss) >= 5 or abs(old.rtt - new.rtt) > max(100, old.rtt // 4)
