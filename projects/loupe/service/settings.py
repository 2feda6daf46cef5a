"""What a service is told when it starts."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Settings:
    """Limits and places of a service.

    Attributes:
        store: Folder of the database and of the predictions' files.
        token: What clients must send as `Authorization: Bearer TOKEN`; "" = nothing.
        hosts: Names under which the service may be called; empty = any. Without it a page on
            another host could reach a service on loopback by a name that resolves to 127.0.0.1.
        max_bytes: Of one upload.
        max_pixels: Of one image.
        max_seconds: For one image in a worker; also the longest that a request waits.
        upload_seconds: For the headers of a request, and for its body.
        queue: Images that may wait.
        batch: Images that a worker is given at once.
        keep_days: Days after which a prediction is removed; 0 = never.
        stop_seconds: For finishing what was accepted when the service is told to stop.
        connections: At the same time.
    """

    store: Path
    token: str = ""
    hosts: tuple[str, ...] = LOOPBACK_NAMES
    max_bytes: int = 64 * 2**20
    max_pixels: int = 60_000_000
    max_seconds: float = 120.0
    upload_seconds: float = 60.0
    queue: int = 32
    batch: int = 4
    keep_days: float = 0.0
    stop_seconds: float = 30.0
    connections: int = 128


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach an address.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
