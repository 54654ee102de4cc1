"""The tables of phases: what they allow is allowed, everything else is an error, and every phase can be reached."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from enum import Enum
from typing import Any

import pytest

from balancer.frontend import client_connection
from balancer.frontend.client_connection import ClientConnection
from balancer.phase_checks import CheckedPhase, IllegalTransition, check_phases
from balancer.upstream import phase as member_phase
from balancer.upstream.connection import MemberConnection
from tests.support.builds import checks_states

Table = dict[Any, frozenset[Any]]

MACHINES: list[tuple[type[Enum], Table, Enum]] = [
    (member_phase.Phase, member_phase.TRANSITIONS, member_phase.IDLE),
    (client_connection.Phase, client_connection.TRANSITIONS, client_connection.NEW),
]
EACH = pytest.mark.parametrize(("phases", "table", "first"), MACHINES, ids=["member", "client"])


def paths(table: Table, first: Enum) -> dict[Enum, list[Enum]]:
    """A shortest way to each phase that can be reached."""
    found, due = {first: [first]}, [first]
    for before in due:
        for after in table[before]:
            if after not in found:
                found[after] = [*found[before], after]
                due.append(after)
    return found


def checked(table: Table, first: Enum) -> Any:
    """An object that has a phase as a connection has it where transitions are checked."""

    class Checked:
        __slots__ = ("phase",)
        phase: Enum

    check_phases(Checked, table, first)
    return Checked()


@EACH
def test_table_names_every_phase_and_leads_to_closed(phases: type[Enum], table: Table, first: Enum) -> None:
    closed = phases["CLOSED"]
    assert set(table) == set(phases)
    assert [phase for phase in phases if closed not in table[phase]] == [closed]
    reached = set(paths(table, first)) | {client_connection.Phase.HANDSHAKE}
    assert reached >= set(phases)


@EACH
def test_change_of_phase_that_the_table_lacks_is_an_error(phases: type[Enum], table: Table, first: Enum) -> None:
    ways = paths(table, first)
    for before, after in itertools.product(ways, phases):
        stateful = checked(table, first)
        for phase in ways[before]:
            stateful.phase = phase
        if after in table[before]:
            stateful.phase = after
            assert stateful.phase is after
        else:
            with pytest.raises(IllegalTransition, match=f"{before} -> {after}"):
                stateful.phase = after
            assert stateful.phase is before


@EACH
def test_first_phase_other_than_the_tables_is_an_error(phases: type[Enum], table: Table, first: Enum) -> None:
    for phase in set(phases) - {first}:
        with pytest.raises(IllegalTransition):
            checked(table, first).phase = phase


@checks_states
@pytest.mark.parametrize("connection", [MemberConnection, ClientConnection])
def test_connections_of_the_tests_check_their_phases(connection: type) -> None:
    assert isinstance(vars(connection)["phase"], CheckedPhase)


@checks_states
@pytest.mark.parametrize("value", ["", "1"])
def test_environment_decides_whether_connections_check_their_phases(value: str) -> None:
    code = (
        "from balancer.upstream.connection import MemberConnection as one\n"
        "from balancer.frontend.client_connection import ClientConnection as other\n"
        "print(type(one.phase).__name__, type(other.phase).__name__)"
    )
    environ = os.environ | {"BALANCER_CHECK_STATES": value}
    ran = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["CheckedPhase" if value else "member_descriptor"] * 2
