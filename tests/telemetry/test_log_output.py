"""Streams that take no more: what is written to them neither waits nor fails, and what is lost is counted."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from balancer.telemetry import log_output
from balancer.telemetry.log_output import REPORT_SECONDS, WAITING_MAX, LogOutput

LINE = b"x" * 999 + b"\n"
# More than any stream here takes.
MANY = WAITING_MAX // len(LINE) + 20_000


class Ends:
    """The two ends of a stream."""

    def __init__(self, reader: int, writer: int) -> None:
        self.reader = reader
        self.writer = writer

    def read(self) -> bytes:
        """What has been written so far."""
        os.set_blocking(self.reader, False)
        found = b""
        try:
            while piece := os.read(self.reader, 65536):
                found += piece
        except BlockingIOError:
            pass
        return found

    def leave(self) -> None:
        """Close the reader's end, once: its number may be another descriptor's from then on."""
        reader, self.reader = self.reader, -1
        os.close(reader)

    def close(self) -> None:
        if self.reader >= 0:
            self.leave()
        os.close(self.writer)


def pipe() -> Ends:
    return Ends(*os.pipe())


def terminal() -> Ends:
    reader, writer = os.openpty()
    tty.setraw(writer)
    return Ends(reader, writer)


def socket_pair() -> Ends:
    ours, theirs = socket.socketpair()
    return Ends(ours.detach(), theirs.detach())


@pytest.fixture
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    made = getattr(request, "param", pipe)()
    yield made
    made.close()


@pytest.mark.parametrize("ends", [pipe, terminal, socket_pair], indirect=True)
def test_stream_that_is_not_read_drops_lines_and_the_others_come_whole_and_in_order(ends: Ends) -> None:
    output = LogOutput(ends.writer, "it")
    for number in range(MANY):
        output.write(b"%999d\n" % number)
    assert 0 < output.dropped < MANY
    found = b""
    while output.channel.push():
        found += ends.read()
    found += ends.read()
    assert found == b"".join(b"%999d\n" % number for number in range(MANY - output.dropped))
    output.write(b"again\n")
    assert ends.read() == b"again\n"


@pytest.mark.parametrize("ends", [pipe, terminal, socket_pair], indirect=True)
def test_stream_leaves_the_flags_of_its_descriptor_alone(ends: Ends) -> None:
    LogOutput(ends.writer, "it").write(LINE)
    assert os.get_blocking(ends.writer)


def test_pipe_that_cannot_be_opened_anew_does_not_block_either(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)
    output = LogOutput(ends.writer, "it")
    for _ in range(MANY):
        output.write(LINE)
    assert output.dropped


def test_line_that_is_longer_than_all_that_may_wait_is_written_in_time(ends: Ends) -> None:
    output = LogOutput(ends.writer, "it")
    long = b"x" * WAITING_MAX * 2 + b"\n"
    output.write(long)
    found = b""
    while output.channel.push():
        found += ends.read()
    assert found + ends.read() == long


def test_stream_whose_reader_has_left_drops_what_comes(ends: Ends) -> None:
    output = LogOutput(ends.writer, "it")
    ends.leave()
    output.write(LINE * 3)
    assert (output.dropped, output.channel.push()) == (3, False)


def test_stream_whose_reader_had_left_before_drops_what_comes(ends: Ends) -> None:
    ends.leave()
    output = LogOutput(ends.writer, "it")
    output.write(LINE)
    assert output.dropped == 1


def test_file_gets_every_line(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        output = LogOutput(file.fileno(), "it")
        for _ in range(5000):
            output.write(LINE)
    assert (tmp_path / "log").stat().st_size == 5000 * len(LINE)


def test_full_device_costs_a_line_a_minute(ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
    logged = LogOutput(ends.writer, "the log")
    with Path("/dev/full").open("wb", buffering=0) as full:
        output = LogOutput(full.fileno(), "standard output")
        for second in range(int(3 * REPORT_SECONDS)):
            output.write(LINE * 10)
            output.report(float(second), logged)
    words = "dropped: No space left on device"
    assert caplog.messages == [
        f"{count} lines of standard output {words}" for count in (10, 10 * int(REPORT_SECONDS), 600)
    ]


def test_report_waits_until_the_log_takes_it(ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
    output = LogOutput(ends.writer, "standard error")
    for _ in range(MANY):
        output.write(LINE)
    assert output.report(0.0, output)
    assert caplog.messages == []
    while output.channel.push():
        ends.read()
    assert not output.report(1.0, output)
    assert caplog.messages == [f"{output.dropped} lines of standard error dropped: it is not read"]


def test_report_that_is_lost_itself_is_made_again() -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        output = LogOutput(full.fileno(), "standard error")
        handler = logging.StreamHandler(log_output._stream(sys.stderr, output))
        logging.getLogger(log_output.__name__).addHandler(handler)
        try:
            output.write(LINE)
            assert output.report(0.0, output)
            assert output.report(REPORT_SECONDS, output)
        finally:
            logging.getLogger(log_output.__name__).removeHandler(handler)


async def test_slow_reader_gets_everything_as_fast_as_it_reads(ends: Ends) -> None:
    output = LogOutput(ends.writer, "it")
    output.channel.attach(asyncio.get_running_loop())
    for _ in range(1000):
        output.write(LINE)
    found = 0
    async with asyncio.timeout(10):
        while found < 1000 * len(LINE):
            await asyncio.sleep(0)
            found += len(ends.read())
    assert (output.dropped, output.channel.push()) == (0, False)
    output.channel.attach(None)


async def test_stream_whose_reader_leaves_is_not_watched_any_more(ends: Ends) -> None:
    output = LogOutput(ends.writer, "it")
    output.channel.attach(asyncio.get_running_loop())
    for _ in range(1000):
        output.write(LINE)
    ends.leave()
    async with asyncio.timeout(10):
        while not output.dropped or output.channel.watching:
            await asyncio.sleep(0)
    output.channel.attach(None)


def test_end_leaves_a_slow_reader_some_time_and_no_more(ends: Ends) -> None:
    output = LogOutput(ends.writer, "it")
    for _ in range(1000):
        output.write(LINE)
    output.channel.finish(0.01)
    assert output.channel.push()


def test_child_does_not_write_what_waits_in_its_parent(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    output = LogOutput(ends.writer, "it")
    for _ in range(1000):
        output.write(LINE)
    monkeypatch.setattr(log_output, "_installed", [output])
    log_output._forget()
    assert not output.channel.push()


def installed(monkeypatch: pytest.MonkeyPatch, ends: Ends) -> Callable[[], bytes]:
    with os.fdopen(os.dup(ends.writer), "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(log_output, "_installed", [])
        log_output.install()
    return ends.read


def test_prints_go_out_as_lines(ends: Ends) -> None:
    with pytest.MonkeyPatch.context() as patch:
        read = installed(patch, ends)
        print("a", "é", "\udc80")
        print("error", file=sys.stderr)
        assert read() == "a é \\udc80\nerror\n".encode()
        assert log_output.dropped_lines() == {"stdout": 0, "stderr": 0}
        assert not log_output.tick()


def test_line_of_several_writes_waits_for_its_end_or_a_flush(ends: Ends) -> None:
    output = LogOutput(ends.writer, "it")
    output.write(b"a line\nhalf")
    assert ends.read() == b"a line\n"
    output.write(b" of it")
    assert ends.read() == b""
    output.write(b"\nno end")
    assert ends.read() == b"half of it\n"
    output.flush()
    assert ends.read() == b"no end"
    output.write(b"x" * 2**20)
    output.write(b"x" * 2**20)
    assert ends.read() == b""
    output.write(b"x")
    assert ends.read()


def test_long_print_is_one_write(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.MonkeyPatch.context() as patch:
        installed(patch, ends)
        [output, _] = log_output._installed
        written: list[bytes] = []
        monkeypatch.setattr(output.channel, "put", lambda stream, data: written.append(data))
        print("x" * 20_000)
    assert written == [b"x" * 20_000 + b"\n"]
