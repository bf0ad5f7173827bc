"""Reading the certificate that a server shows. Nothing is sent to it, so it need not be one that anybody trusts."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass

PATIENCE = 10.0  # seconds
SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"  # https://www.postgresql.org/docs/18/protocol-message-formats.html


@dataclass(frozen=True, slots=True)
class Server:
    """Somebody who shows a certificate.

    Attributes:
        host, port: its address.
        postgres: whether it speaks Postgres's protocol, in which TLS has to be asked for.
    """

    host: str
    port: int
    postgres: bool = False


@dataclass(frozen=True, slots=True)
class Validity:
    """From when to when a certificate holds, wall seconds."""

    begins: float
    ends: float


async def validity(server: Server) -> Validity | None:
    """How long a server's certificate holds; None where it speaks no TLS, or does not answer."""
    try:
        async with asyncio.timeout(PATIENCE):
            shown = await _certificate(server)
    except (OSError, TimeoutError, ssl.SSLError, asyncio.IncompleteReadError):
        return None
    if shown is None:
        return None
    from cryptography.x509 import load_der_x509_certificate

    certificate = load_der_x509_certificate(shown)
    return Validity(certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp())


async def _certificate(server: Server) -> bytes | None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # one that has expired is to be read, too
    if not server.postgres:
        _, writer = await asyncio.open_connection(server.host, server.port, ssl=context, server_hostname=server.host)
    else:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(SSL_REQUEST)
        if await reader.readexactly(1) != b"S":
            writer.close()
            return None
        await writer.start_tls(context, server_hostname=server.host)
    try:
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()
    return bytes(shown) if shown else None
