"""A fuzz case: bytes that say what clients and members send, cut where, and what else happens.

Bytes are sent by whoever speaks, at first the first client. 0xFF and a letter do something else; what was said
before is sent first. So every string of bytes is a case, and one can be read and written by hand:

    GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n \\xffm HTTP/1.1 200 OK\\r\\nContent- \\xff| Length: 0\\r\\n\\r\\n

(without the spaces). Members that have no line of their own answer by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from balancer.types import Address
from tests.fuzz.play import Play
from tests.fuzz.seeds import seeds as seeds  # those of this target
from tests.support.judge import finish
from tests.support.pipes import Pipe, PipeLoop
from tests.support.world import MEMBERS, Client, Link, World

ESCAPE = 0xFF
# More is cut off: a case has to be quick.
SIZE_MAX = 4096
# Limits on what makes a case slow: all the time that passes, in seconds, and what fillers add up to, in KiB.
TIME_MAX = 200.0
FILLER_MAX = 512

# What follows the escape, and what it does.
CLIENTS = b"123"  # this client speaks from here on
MEMBER = b"m"  # the member whose connection was written to last speaks
OLDEST = b"o"  # the member of the oldest open connection speaks
CUT = b"|"  # the piece ends here, and everything that can happen happens before the next
TURN = b"&"  # the piece ends here, and the loop makes one turn
AND = b"+"  # the piece ends here, and the next is at hand at once
EOF = b"e"  # the speaker closes its side
RESET = b"r"  # the speaker resets the connection
STOP = b"p"  # the speaker takes no more
GO_ON = b"g"  # the speaker takes again what it is sent
PASS = b"t"  # so many tenths of a second pass; the number is the next byte
LONG = b"T"  # all limits for clients pass
FILL = b"b"  # so many KiB of "x"; the number is the next byte
ANSWER = b"a"  # members answer what they have not answered yet
REFUSE, SILENT, FINE = b"d", b"h", b"u"  # members refuse connections, do not answer, are fine again
FORGET, GIVE_UP = b"f", b"v"  # the members have left, or hang
SHUT, END, CUT_ALL = b"s", b"w", b"x"  # the server stops: its connections are told; streams end; requests are cut
ONE, TLS = b"L", b"S"  # for the whole case: a request at a time for each member; clients speak TLS


def player() -> Play:
    """What plays cases, one after the other on one loop."""
    loop = PipeLoop()
    return lambda data: run(data, loop)


def run(data: bytes, loop: PipeLoop) -> list[str]:
    """Play a case; everything that must not have happened, in words."""
    return _Case(data[:SIZE_MAX], loop).play()


def steps(data: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """The pieces, each with what comes after it and the number that belongs to that."""
    piece = bytearray()
    position = 0
    while position < len(data):
        byte = data[position]
        position += 1
        if byte != ESCAPE:
            piece.append(byte)
            continue
        letter = data[position : position + 1]
        position += 1
        number = 0
        if letter in (PASS, FILL):
            number = data[position] if position < len(data) else 0
            position += 1
        yield bytes(piece), letter, number
        piece.clear()
    yield bytes(piece), CUT, 0


class _Case:
    def __init__(self, data: bytes, loop: PipeLoop) -> None:
        self._steps = list(steps(data))
        letters = {letter for _, letter, _ in self._steps}
        scripted = bool(letters & {MEMBER, OLDEST})
        self._world = World(loop, answering=not scripted, tls=TLS in letters, limit=int(ONE in letters))
        self._clients: dict[bytes, Client] = {}
        self._time = self._filler = 0.0
        self._speaker: Client | Link | None = None
        balancer = self._world.balancer
        self._simple: dict[bytes, Callable[[], object]] = {
            ANSWER: self._world.answer_all,
            REFUSE: lambda: self._mood("refuses"),
            SILENT: lambda: self._mood("silent"),
            FINE: lambda: self._mood("fine"),
            FORGET: lambda: self._each(balancer.upstream.forget),
            GIVE_UP: lambda: self._each(balancer.upstream.check_network),
            SHUT: lambda: self._world.front.shut_down_connections(),
            END: self._go_away,
            CUT_ALL: balancer.proxy.abort_all,
        }

    def play(self) -> list[str]:
        world = self._world.open()
        self._speaks(CLIENTS[:1])
        for piece, letter, number in self._steps:
            if piece:
                self._say(piece)
            self._do(letter, number)
        return finish(world)

    def _say(self, data: bytes) -> None:
        if isinstance(self._speaker, Client):
            self._speaker.send(data)
        elif self._speaker and not self._speaker.left:
            self._speaker.scripted = True
            self._speaker.pipe.send(data)

    def _do(self, letter: bytes, number: int) -> None:
        world = self._world
        if letter == AND:
            return
        if letter == TURN:
            world.loop.turn()
            return
        if letter in (EOF, RESET):
            self._leave(reset=letter == RESET)
            return
        world.settle()
        if letter in (PASS, LONG):
            seconds = min(90.0 if letter == LONG else number / 10, TIME_MAX - self._time)
            self._time += seconds
            world.loop.wait(seconds)
        elif letter == FILL:
            number = int(min(number, FILLER_MAX - self._filler))
            self._filler += number
            self._say(b"x" * (number * 1024))
        elif letter in (STOP, GO_ON):
            if pipe := self._pipe:
                pipe.stop_taking() if letter == STOP else pipe.take()
        elif letter in self._simple:
            # As a timer or another connection would do it.
            world.loop.call_soon(self._simple[letter])
            world.loop.turn()
        elif letter:
            self._speaks(letter)

    def _speaks(self, letter: bytes) -> None:
        links = [it for it in self._world.links if not it.pipe.lost]
        if letter in CLIENTS:
            self._speaker = self._clients.get(letter)
            if self._speaker is None:
                self._speaker = self._clients[letter] = self._world.client()
        elif letter == MEMBER:
            written = [it for it in links if it.pipe.writes]
            self._speaker = max(written, key=lambda it: it.pipe.writes[-1][2], default=None)
        elif letter == OLDEST:
            self._speaker = links[0] if links else None

    @property
    def _pipe(self) -> Pipe | None:
        return self._speaker.pipe if self._speaker else None

    def _leave(self, reset: bool) -> None:
        speaker = self._speaker
        if speaker is None or speaker.left:
            return
        if isinstance(speaker, Client):
            speaker.leave(reset)
            return
        speaker.left = True
        if reset:
            speaker.pipe.reset()
        else:
            speaker.pipe.send_eof()

    def _go_away(self) -> None:
        self._world.going_away = True
        self._world.loop.create_task(self._world.balancer.proxy.end_streams())

    def _each(self, do: Callable[[Address], None]) -> None:
        for member in MEMBERS:
            do(member)

    def _mood(self, mood: str) -> None:
        self._world.mood = mood
