# SPDX-License-Identifier: MIT
"""What is done to the servers and to the processes, and what undoes it some steps later.

Only what each level promises to survive: a replica is promoted when it has all that was acknowledged, or when its
predecessor, to which it then gives way, has. One thing at a time that takes more than a moment.
"""

import random
import threading
from collections.abc import Callable

from bench.rollbacks_parts.ingest import Ingest
from bench.rollbacks_parts.load import Load
from bench.rollbacks_parts.servers import Servers

MOST_DELAY_S = 0.005  # about as long as the requests take beside which something happens
LONGEST_STEPS = 40  # of what is undone later
NOTICED = 0.5  # failovers that a process learns of by losing its connection, not by an answer
LEFT_BEHIND = 0.7  # failovers to and fro that end the connections to the first master


class Disturbances:
    """Each method does one; what it returns says whether it was done."""

    def __init__(
        self,
        randomness: random.Random,
        servers: Servers,
        load: Load,
        processes: list[Ingest],
        new_process: Callable[[], Ingest],
    ) -> None:
        self._random = randomness
        self._servers = servers
        self._load = load
        self._processes = processes
        self._new_process = new_process
        self._undo: Callable[[], None] | None = None
        self._undo_step = 0
        self._step = 0

    def at(self, step: int) -> None:
        """Undo what is due at this step."""
        self._step = step
        if step >= self._undo_step:
            self.mend()

    def mend(self) -> None:
        """Undo what is under way."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()

    def _later(self, undo: Callable[[], None]) -> bool:
        self._undo = undo
        self._undo_step = self._step + self._random.randint(1, LONGEST_STEPS)
        return True

    def _amid_requests(self, do: Callable[[], object]) -> None:
        """Do it while requests are on their way: one of them may be without an answer then."""
        timer = threading.Timer(self._random.uniform(0, MOST_DELAY_S), do)
        timer.start()
        for ask in (self._load.enqueue, self._load.enqueue_group, self._load.ask_once, self._load.enqueue_group):
            ask()
        timer.join()

    def _kill_master(self) -> None:
        self._amid_requests(lambda: self._servers.master.fail("kill"))

    # At any level

    def cut_connections(self) -> bool:
        """Every connection to the master ends."""
        if self._servers.master.is_failed:
            return False
        self._amid_requests(lambda: self._servers.master.client.client_kill_filter(_type="normal"))
        return True

    def flush_scripts(self) -> bool:
        """The master forgets the scripts that were loaded."""
        if self._servers.master.is_failed:
            return False
        self._servers.master.client.script_flush()
        return True

    def replace_process(self) -> bool:
        """A process dies; the next one takes over its spool at its first turn."""
        place = self._random.randrange(len(self._processes))
        self._processes[place].die()
        self._processes[place] = self._new_process()
        return True

    # At level replica

    def lose_replica(self) -> bool:
        """Nobody follows the master for a while, so nothing is acknowledged but from the spool."""
        if self._undo is not None:
            return False
        self._servers.other.client.replicaof("no", "one")
        return self._later(self._servers.follow)

    def promote_and_kill(self) -> bool:
        """The replica is promoted as the master is killed, which comes back as its replica, later."""
        if self._undo is not None:
            return False
        self._servers.wait_until_in_step()
        self._kill_master()
        self._promote()
        return self._later(self._start_other)

    def promote_alive(self) -> bool:
        """The replica is promoted while the master, still one, goes on answering those who are connected."""
        if self._undo is not None:
            return False
        self._servers.wait_until_in_step()
        self._promote()
        return self._later(self._servers.follow)

    def kill_then_promote(self) -> bool:
        """The master is killed, and the replica promoted only later: until then nobody answers."""
        if self._undo is not None:
            return False
        self._servers.wait_until_in_step()
        self._kill_master()
        return self._later(self._promote_late)

    def promote_and_return(self) -> bool:
        """A → B → A: B is promoted, nobody follows it, and A, with what it had, takes its place again."""
        if self._undo is not None:
            return False
        self._servers.wait_until_in_step()
        first = self._servers.master
        self._promote()
        if self._random.random() < LEFT_BEHIND:
            first.client.client_kill_filter(_type="normal")
        return self._later(self._return)

    def _promote(self) -> None:
        self._servers.promote()
        for process in self._processes:
            if self._random.random() < NOTICED:
                process.lose()

    def _promote_late(self) -> None:
        self._promote()
        self._start_other()

    def _return(self) -> None:
        self._servers.master.fail("kill")
        self._servers.name_other()
        self._start_other()

    def _start_other(self) -> None:
        self._servers.other.mend("kill")
        self._servers.follow()

    # At level fsync

    def restart_server(self) -> bool:
        """Killed and started again at once on its append-only file."""
        if self._undo is not None:
            return False
        self._kill_master()
        self._servers.master.mend("kill")
        return True

    def kill_server(self) -> bool:
        """Killed, and started again later."""
        if self._undo is not None:
            return False
        self._kill_master()
        return self._later(lambda: self._servers.master.mend("kill"))
