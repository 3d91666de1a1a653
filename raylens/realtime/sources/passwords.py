"""User names and passwords in HTTP and RTSP (RFC 7616, RFC 7617; RFC 2326, D.1)."""

from __future__ import annotations

import hashlib
import re
import secrets
from base64 import b64encode
from dataclasses import dataclass, field

_PARAMETER = re.compile(r'([a-zA-Z-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_ESCAPED = re.compile(r"\\(.)")
_HASHES = {"md5": hashlib.md5, "sha-256": hashlib.sha256}


@dataclass(frozen=True)
class Credentials:
    user: str
    password: str = field(repr=False)


class Authenticator:
    """Answers a server's challenges: Digest if it offers that, else Basic."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._scheme = ""
        self._challenge: dict[str, str] = {}
        self._count = 0

    def take(self, challenges: list[str]) -> bool:
        """Take the ``WWW-Authenticate`` headers of an answer. Return whether one is known."""
        for challenge in sorted(challenges, key=lambda text: not text.lower().startswith("digest")):
            scheme, _, rest = challenge.strip().partition(" ")
            parameters = {
                name.lower(): _ESCAPED.sub(r"\1", quoted) or plain
                for name, quoted, plain in _PARAMETER.findall(rest)
            }
            algorithm = parameters.get("algorithm", "md5").lower().removesuffix("-sess")
            is_known = scheme.lower() == "basic" or algorithm in _HASHES
            if scheme.lower() in ("basic", "digest") and is_known:
                self._scheme, self._challenge, self._count = scheme.lower(), parameters, 0
                return True
        return False

    def authorize(self, method: str, uri: str) -> str | None:
        """Return the ``Authorization`` header of a request; None before the first challenge."""
        user, password = self._credentials.user, self._credentials.password
        if self._scheme == "basic":
            return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"
        return self._digest(method, uri) if self._scheme == "digest" else None

    def _digest(self, method: str, uri: str) -> str:
        challenge = self._challenge
        algorithm = challenge.get("algorithm", "MD5")
        realm, nonce = challenge.get("realm", ""), challenge.get("nonce", "")
        self._count += 1
        count, client_nonce = f"{self._count:08x}", secrets.token_hex(8)

        def digest(text: str) -> str:
            return _HASHES[algorithm.lower().removesuffix("-sess")](text.encode()).hexdigest()

        secret = digest(f"{self._credentials.user}:{realm}:{self._credentials.password}")
        if algorithm.lower().endswith("-sess"):
            secret = digest(f"{secret}:{nonce}:{client_nonce}")
        request = digest(f"{method}:{uri}")
        fields = {
            "username": self._credentials.user,
            "realm": realm,
            "nonce": nonce,
            "uri": uri,
        }
        extra = ""
        if "auth" in re.split(r"[\s,]+", challenge.get("qop", "")):
            fields["response"] = digest(f"{secret}:{nonce}:{count}:{client_nonce}:auth:{request}")
            fields["cnonce"] = client_nonce
            extra = f", qop=auth, nc={count}"
        else:
            fields["response"] = digest(f"{secret}:{nonce}:{request}")
        if "opaque" in challenge:
            fields["opaque"] = challenge["opaque"]
        if "algorithm" in challenge:
            extra += f", algorithm={algorithm}"
        return "Digest " + ", ".join(map(_quote, fields, fields.values())) + extra


def _quote(name: str, value: str) -> str:
    escaped = re.sub(r'(["\\])', r"\\\1", value)
    return f'{name}="{escaped}"'
