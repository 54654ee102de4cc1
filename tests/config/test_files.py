"""Files that the balancer's user may not read, and places where it may not listen."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from balancer.config.files import why_unreadable
from balancer.config.settings import Settings, SettingsError
from balancer.frontend.tls import Certificate
from balancer.process.sockets import CannotListen, listen
from balancer.routing.parse import read
from balancer.types import Address, UnixSocket
from tests.support.tls import issue


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def user() -> Iterator[int]:
    """The test runs as a user without privileges; root becomes that of the image."""
    if os.geteuid():
        yield os.geteuid()
        return
    os.seteuid(10001)
    try:
        yield 10001
    finally:
        os.seteuid(0)


def problem(settings: Settings) -> str:
    with pytest.raises(SettingsError) as caught:
        Certificate.of(settings) if settings.tls_cert else read(settings)
    (line,) = caught.value.problems
    return line


def locked(path: Path) -> Path:
    path.chmod(0)
    return path


@pytest.fixture
def files(folder: Path) -> dict[str, str]:
    """A certificate, its key and routes, of which only the certificate may be read."""
    (folder / "routes.toml").write_text("[apps]\n")
    pair = issue(folder)
    locked(folder / "routes.toml")
    locked(Path(pair["tls_key"]))
    return pair | {"routes": str(folder / "routes.toml")}


def test_key_that_may_not_be_read_is_named_with_the_user_and_what_helps(files: dict[str, str], user: int) -> None:
    settings = Settings(tls_cert=files["tls_cert"], tls_key=files["tls_key"])
    helps = f"the file has to be readable for that user (chown {user}, or chmod o+r)"
    expected = f"BALANCER_TLS_KEY={files['tls_key']} cannot be used: Permission denied as uid {user}: {helps}"
    assert problem(settings) == expected


def test_routes_that_may_not_be_read_are_named_with_the_user(files: dict[str, str], user: int) -> None:
    assert f"Permission denied as uid {user}: the file has to be readable" in problem(Settings(routes=files["routes"]))


@pytest.fixture
def closed(folder: Path) -> Path:
    """A file in a folder that only root may enter."""
    (folder / "closed" / "inner").mkdir(parents=True)
    locked(folder / "closed")
    return folder / "closed" / "inner" / "key.pem"


def test_folder_that_may_not_be_entered_is_named(closed: Path, user: int) -> None:
    with pytest.raises(PermissionError) as caught:
        closed.read_bytes()
    words = f"it may not enter the folder {closed.parents[1]} (chown {user}, or chmod o+x)"
    assert why_unreadable(str(closed), caught.value) == f"Permission denied as uid {user}: {words}"


def test_file_that_is_missing_is_called_so() -> None:
    assert why_unreadable("/nowhere", FileNotFoundError(2, "No such file or directory")) == "No such file or directory"


def test_socket_in_a_folder_of_others_names_the_user(folder: Path, user: int) -> None:
    folder = folder if user == 10001 else Path("/")
    address = UnixSocket(str(folder / "balancer.sock"))
    words = f"Permission denied as uid {user}: it has to write to the folder {folder}"
    with pytest.raises(CannotListen) as caught:
        listen("BALANCER_BIND", address)
    assert str(caught.value) == f"BALANCER_BIND={address} cannot be listened on: {words}"


def test_port_that_takes_a_privilege_names_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(sock: socket.socket, address: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", bind)
    with pytest.raises(CannotListen, match=rf"^BALANCER_BIND=127\.0\.0\.1:80 .* as uid {os.geteuid()}: a port below"):
        listen("BALANCER_BIND", Address("127.0.0.1", 80))
