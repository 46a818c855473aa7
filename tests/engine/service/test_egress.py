"""
A callback's URL leads to public addresses only, however it is written, unless the operator allows more.
"""

import asyncio
import socket
from typing import Any

import httpx
import pytest

from milkrun_engine.domain.errors import InvalidRequest
from milkrun_engine.service.egress import Egress, ForbiddenAddress
from milkrun_engine.settings import EngineSettings

pytestmark = pytest.mark.anyio
PRIVATE = """
127.0.0.1 127.1 127.255.255.254 0x7f.0.0.1 0x7f000001 2130706433 017700000001 localhost LOCALHOST
10.0.0.1 10.1 172.16.0.1 172.31.255.255 192.168.0.1 3232235521 0xc0a80001 100.64.0.1 100.127.255.254 192.0.2.1
198.18.0.1 203.0.113.1 240.0.0.1 255.255.255.255 0.1.2.3 127。0。0。1 [::1] [0:0:0:0:0:0:0:1]
[::ffff:127.0.0.1] [::ffff:7f00:1] [::ffff:10.0.0.1] [::127.0.0.1] [::10.0.0.1] [fc00::1] [fd12:3456::1] [2001:db8::1]
[64:ff9b::7f00:1] [64:ff9b::10.0.0.1] [2002:7f00:1::] [2002:0a00:0001::1]
""".split()
NEVER = """
0.0.0.0 0 0x0 169.254.169.254 169.254.0.1 2852039166 0xa9fea9fe 224.0.0.1 239.255.255.255 [::] [fe80::1] [ff02::1]
[::ffff:169.254.169.254] [64:ff9b::a9fe:a9fe] [2002:a9fe:a9fe::] [::ffff:0.0.0.0]
""".split()
PUBLIC = ["93.184.215.14", "1.1.1.1", "[2606:4700:4700::1111]", "[64:ff9b::101:101]", "[::ffff:1.1.1.1]"]
UNUSABLE = """
http://user@93.184.215.14/ http://user:password@93.184.215.14/ http://:password@93.184.215.14/
http://93.184.215.14@127.0.0.1/ http:// http:///path https://:80/ http://[::1/ http://93.184.215.14:99999/
http://0177.0.0.1/ http://１２７.0.0.1/
""".split()


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Where a socket was connected to."""
    made: list[Any] = []
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, lambda _self, address: made.append(address))
    return made


@pytest.mark.parametrize("host", PRIVATE)
async def test_a_private_address_is_refused_unless_allowed(host: str, connections: list[Any]) -> None:
    for url in (f"http://{host}:8000/hook", f"https://{host}/"):
        with pytest.raises(InvalidRequest, match="MILKRUN_CALLBACK_PRIVATE=1"):
            await Egress(private=False).check(url)
        await Egress(private=True).check(url)
    assert connections == []


@pytest.mark.parametrize("host", NEVER)
@pytest.mark.parametrize("private", [True, False])
async def test_a_link_local_a_multicast_and_no_address_are_always_refused(host: str, private: bool) -> None:
    with pytest.raises(InvalidRequest, match="never called"):
        await Egress(private=private).check(f"http://{host}/latest/meta-data")


@pytest.mark.parametrize("host", PUBLIC)
async def test_a_public_address_is_allowed(host: str) -> None:
    await Egress(private=False).check(f"https://{host}/hook")


@pytest.mark.parametrize("url", [*UNUSABLE, "http://127.0.0.1\\@93.184.215.14/", "http://a\tb/"])
async def test_a_url_that_is_none_or_has_credentials_is_refused(url: str, connections: list[Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await Egress(private=False).check(url)
    assert "password" not in str(refused.value)
    assert connections == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "gopher://1.1.1.1/", "ftp://1.1.1.1/", "data:text/plain,x", "x"])
async def test_another_scheme_is_refused(url: str) -> None:
    with pytest.raises(ForbiddenAddress):
        await Egress(private=True).addresses(httpx.URL(url))


async def test_one_private_address_of_a_name_spoils_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def two(_host: str, port: int, **_options: Any) -> list[Any]:
        return [(2, 1, 6, "", (address, port)) for address in ("93.184.215.14", "10.0.0.1")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", two)
    with pytest.raises(InvalidRequest):
        await Egress(private=False).check("http://two.test/")


async def test_a_name_that_nobody_knows_just_now_is_left_for_later() -> None:
    await Egress(private=False).check("http://no-such-name.invalid/")


@pytest.mark.parametrize(
    ("expected", "facts"),
    [
        (True, {}),
        (True, {"host": "127.0.0.2"}),
        (True, {"host": "::1"}),
        (True, {"host": "localhost"}),
        (False, {"host": "0.0.0.0"}),
        (False, {"host": "10.0.0.1"}),
        (False, {"host": "engine.test"}),
        (True, {"host": "0.0.0.0", "is_local": True}),
        (True, {"host": "0.0.0.0", "environ": "true"}),
        (False, {"environ": "0"}),
    ],
)
def test_private_addresses_are_allowed_where_only_this_host_reaches_the_engine(
    expected: bool, facts: dict[str, Any]
) -> None:
    given = facts.pop("environ", None)
    environ = {"MILKRUN_CALLBACK_PRIVATE": given} if given else {}
    assert expected is EngineSettings.read(environ, **facts).calls_private


def test_a_setting_that_is_neither_yes_nor_no_is_told() -> None:
    with pytest.raises(ValueError, match="MILKRUN_CALLBACK_PRIVATE must be 1 or 0"):
        EngineSettings.read({"MILKRUN_CALLBACK_PRIVATE": "maybe"})
