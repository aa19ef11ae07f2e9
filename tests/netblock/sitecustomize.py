"""Refuses every connection and look-up that leaves this machine, in this process. Python imports it at start-up."""

import sys
from typing import Any

LOCAL = ("127.", "::1", "localhost", "0.0.0.0")


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event == "socket.connect" and isinstance(args[1], tuple) and not str(args[1][0]).startswith(LOCAL):
        raise PermissionError(f"tests use no network: connection to {args[1]}")
    if event == "socket.getaddrinfo" and args[0] and not str(args[0]).startswith(LOCAL):
        raise PermissionError(f"tests use no network: look-up of {args[0]}")


sys.addaudithook(_audit)
