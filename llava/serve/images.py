"""`load_image`: an image from a path or a URL, within the limits of the one image reader (`llava.model.images`)."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable

from PIL import Image

from llava.model.images import LIMITS, Limits, read_image

_CHUNK = 1 << 13


def load_image(source: str, limits: Limits = LIMITS) -> Image.Image:
    """Read an image as RGB.

    Args:
        source: a path (`~` is the home folder), or an http(s) URL.
        limits: of bytes, pixels, and seconds of a whole download.

    Raises:
        ValueError: what `read_image` refuses, and a URL that does not answer with an image in time; one line.

    """
    if source.lower().startswith(("http://", "https://")):
        return read_image(download(source, limits), limits, name=source)
    return read_image(source, limits)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public network, not of this machine or the networks it is in."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = [one for one in (getattr(ip, "ipv4_mapped", None), getattr(ip, "sixtofour", None)) if one is not None]
    inner += [ipaddress.ip_address(int(ip) & 0xFFFFFFFF)] if ip in _NAT64 else []
    return all(one.is_global and not one.is_multicast for one in (ip, *inner))


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def download(url: str, limits: Limits = LIMITS, allowed: Callable[[str], bool] | None = None) -> bytes:
    """Fetch a URL, in a thread: no socket timeout covers name lookup or a server that sends one byte per second.

    allowed:
        which IP addresses may be connected to, such as `is_public`, checked for every redirect too, and the address
        that was checked is the one that is used; proxies of the environment are left out. None: any

    Raises:
        ValueError: no answer in time, an HTTP error, a body above the size limit, an address that is not allowed.

    """
    outcome: list[bytes | ValueError] = []
    abandoned = threading.Event()
    worker = threading.Thread(target=_fetch, args=(url, limits, outcome, abandoned, allowed), daemon=True)
    worker.start()
    try:
        worker.join(limits.seconds)
    finally:
        abandoned.set()
    if not outcome:
        raise ValueError(f"image {url!r} did not arrive within {limits.seconds:g} s")
    if isinstance(outcome[0], ValueError):
        raise outcome[0]
    return outcome[0]


def _fetch(
    url: str,
    limits: Limits,
    outcome: list[bytes | ValueError],
    abandoned: threading.Event,
    allowed: Callable[[str], bool] | None = None,
) -> None:
    import requests

    headers = {"User-Agent": "llava-chat", "Accept": "image/*", "Accept-Encoding": "identity"}
    data = bytearray()
    try:
        with (
            requests.Session() if allowed is None else _guarded_session(allowed) as session,
            session.get(url, stream=True, timeout=limits.seconds, headers=headers) as response,
        ):
            if not response.ok:
                outcome.append(
                    ValueError(f"image {url!r}: the server answered {response.status_code} {response.reason}")
                )
                return
            announced = response.headers.get("Content-Length", "")
            limits.check_size(url, int(announced) if announced.isdecimal() else 0)
            for chunk in response.iter_content(_CHUNK):
                data += chunk
                limits.check_size(url, len(data))
                if abandoned.is_set():
                    return
        outcome.append(bytes(data))
    except requests.Timeout:
        outcome.append(ValueError(f"image {url!r} did not arrive within {limits.seconds:g} s"))
    except requests.RequestException as error:
        outcome.append(ValueError(f"image {url!r} cannot be fetched: {_reason(error)}"))
    except ValueError as error:  # above the limit, or no URL: requests' InvalidURL, urllib3's LocationParseError
        outcome.append(error if url in str(error) else ValueError(f"image {url!r} cannot be fetched: {error}"))


def _guarded_session(allowed: Callable[[str], bool]):
    """Return a session that connects to allowed addresses only: each host is looked up once, checked, and then used."""
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    def connect(connection: HTTPConnection, base: type) -> socket.socket:
        host = connection._dns_host
        found = {entry[4][0] for entry in socket.getaddrinfo(host, connection.port, type=socket.SOCK_STREAM)}
        refused = sorted(address for address in found if not allowed(address))
        if refused or not found:
            raise ValueError(f"image URL: {host} is at {', '.join(refused)}, which is not a public address")
        connection._dns_host = sorted(found)[0]
        try:
            return base._new_conn(connection)
        finally:
            connection._dns_host = host  # certificates are checked by name

    class Http(HTTPConnection):
        def _new_conn(self):
            return connect(self, HTTPConnection)

    class Https(HTTPSConnection):
        def _new_conn(self):
            return connect(self, HTTPSConnection)

    class HttpPool(HTTPConnectionPool):
        ConnectionCls = Http

    class HttpsPool(HTTPSConnectionPool):
        ConnectionCls = Https

    class Guarded(HTTPAdapter):
        def init_poolmanager(self, *args, **kwargs):
            super().init_poolmanager(*args, **kwargs)
            self.poolmanager.pool_classes_by_scheme = {"http": HttpPool, "https": HttpsPool}

    session = requests.Session()
    session.trust_env = False
    for scheme in ("http://", "https://"):
        session.mount(scheme, Guarded())
    return session


def _reason(error: BaseException) -> str:
    """Return the innermost cause in one line: what requests says first is an object dump."""
    while isinstance(inner := error.__cause__ or error.__context__ or getattr(error, "reason", None), BaseException):
        error = inner
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())
