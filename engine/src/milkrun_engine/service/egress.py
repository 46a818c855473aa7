"""
Where a URL that a caller gave may lead: not into the operator's own network, unless the operator allows it.

A name is resolved here and the caller connects to the addresses that were checked, so a
name that changes its mind between check and use leads nowhere.
"""

import asyncio
import ipaddress
import socket

import httpx

from milkrun_engine.domain.errors import InvalidRequest

_RESOLVE_SECONDS = 5.0
_MAX_PORT = 65_535
#: IPv6 ranges whose last 32 bits are an IPv4 address: NAT64, mapped, and the old compatible form
_EMBEDDING = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "::ffff:0:0/96", "::/96")))
_SETTING = "MILKRUN_CALLBACK_PRIVATE"


class ForbiddenAddress(Exception):
    """A URL leads where the engine does not go."""


class Egress:
    """
    Decides about addresses.

    Args:
        private: private and loopback addresses are allowed, too.
    """

    def __init__(self, *, private: bool) -> None:
        self._private = private

    async def check(self, url: str) -> None:
        """
        Refuse a URL at the door; a name that can't be resolved just now is left for later.

        Raises:
            InvalidRequest: it can't be used, or leads where the engine does not go.
        """
        try:
            target = httpx.URL(url)
            await self.addresses(target)
        except (httpx.InvalidURL, UnicodeError):
            raise InvalidRequest("callback.url is not a URL that can be called") from None
        except ForbiddenAddress as error:
            raise InvalidRequest(f"callback.url: {error}") from None
        except (OSError, TimeoutError):
            return

    async def addresses(self, url: httpx.URL) -> list[str]:
        """
        Resolve a URL's host; each address is one that may be connected to.

        Raises:
            ForbiddenAddress: it has credentials, another scheme, or an address that is not allowed.
            OSError: there is no such name.
            TimeoutError: nobody knew in time.
        """
        if url.scheme not in {"http", "https"} or not url.host:
            raise ForbiddenAddress("only http and https URLs with a host are called")
        if url.userinfo:
            raise ForbiddenAddress("credentials do not belong into a URL; give them as a header")
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        if port > _MAX_PORT:
            raise ForbiddenAddress(f"ports end at {_MAX_PORT}")
        async with asyncio.timeout(_RESOLVE_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(
                url.raw_host.decode("ascii"), port, type=socket.SOCK_STREAM
            )
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        for address in addresses:  # one that is not allowed spoils them all
            self._check_address(address)
        return addresses

    def _check_address(self, text: str) -> None:
        address = ipaddress.ip_address(text)
        if isinstance(address, ipaddress.IPv6Address) and not address.is_loopback:
            address = _embedded(address)
        # Link-local is where clouds keep their credentials: no receiver lives there.
        if address.is_link_local or address.is_multicast or address.is_unspecified:
            raise ForbiddenAddress("it leads to a link-local, multicast or unspecified address, which is never called")
        if not self._private and not address.is_global:
            raise ForbiddenAddress(
                f"it leads to a private address, which this engine does not call; its operator can allow that: "
                f"{_SETTING}=1"
            )


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address that an IPv6 one really leads to, or itself."""
    if address.sixtofour is not None:
        return address.sixtofour
    if any(address in network for network in _EMBEDDING):
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address
