"""Signatures of bundles, in the form of OpenSSF Model Signing: who vouches for these very bytes.

A signature is an in-toto statement that names the SHA-256 of every file, in a DSSE envelope, in a
Sigstore bundle: what ``model-signing`` 1.0 and later write and verify for keys on an elliptic
curve. It lies beside a bundle, never inside it. That package is not used: it brings two dozen
others, clients of networks among them, into every server that wants to verify one signature.

Sources: https://github.com/sigstore/model-transparency (the statement),
https://github.com/secure-systems-lab/dsse/blob/v1.0.2/protocol.md (the envelope),
https://docs.sigstore.dev/about/bundle (the file).
"""

import base64
import binascii
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivetrain.core.bundle import MANIFEST, Bundle
from drivetrain.core.errors import wrong
from drivetrain.core.need import need

SUFFIX = ".sig"
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_HASHES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}
_KEYS = "keys on the curves P-256, P-384 or P-521, in PEM"
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)
_MOST_BYTES = 1 << 20
"""Of a signature: it names a handful of files."""


@dataclass(frozen=True)
class PublicKey:
    """A key that signatures are verified with.

    Attributes:
        fingerprint: SHA-256 of its PEM form, hexadecimal; signatures name their key by it.
        key: as ``cryptography`` has it.
    """

    fingerprint: str
    key: Any

    @classmethod
    def of(cls, key: Any, where: str) -> "PublicKey":
        """A key of ``cryptography``.

        Raises:
            ValueError: it is of another kind than those that sign.
        """
        curve = getattr(getattr(key, "curve", None), "name", type(key).__name__)
        if curve not in _HASHES:
            raise wrong(where, curve, _KEYS)
        serialization = need("cryptography.hazmat.primitives.serialization", "sign")
        pem = key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return cls(hashlib.sha256(pem).hexdigest(), key)

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether the holder of the private key signed a message."""
        invalid = need("cryptography.exceptions", "sign").InvalidSignature
        try:
            self.key.verify(signature, message, _ecdsa(self.key.curve.name))
        except invalid:
            return False
        return True


@dataclass(frozen=True)
class Trust:
    """The keys of those whose bundles may be served; more than one while keys are changed."""

    keys: tuple[PublicKey, ...]

    @classmethod
    def load(cls, path: str | Path) -> "Trust":
        """Read a file of one or several public keys in PEM, one behind the other.

        Raises:
            ImportError: ``cryptography`` is not installed.
            OSError: it cannot be read.
            ValueError: it holds no key, or one of another kind.
        """
        serialization = need("cryptography.hazmat.primitives.serialization", "sign")
        keys: list[PublicKey] = []
        for pem in _PEM.findall(Path(path).read_bytes()):
            try:
                key = serialization.load_pem_public_key(pem)
            except Exception as error:  # of many kinds, by what is broken
                raise wrong(f"{path}", f"a key that cannot be read ({error})", _KEYS) from None
            keys.append(PublicKey.of(key, f"{path}"))
        if not keys:
            raise wrong(f"{path}", "no public key", _KEYS)
        return cls(tuple(keys))

    def check(self, bundle: Bundle, signatures: Iterable[bytes]) -> PublicKey:
        """See that one of the keys signed a bundle.

        Args:
            bundle: an opened one, so that its bytes are those that its manifest names.
            signatures: the files that are said to be of it.

        Returns:
            The key.

        Raises:
            ValueError: none did; says why of each signature.
        """
        return self.accepted(bundle, signatures)[0][0]

    def accepted(
        self, bundle: Bundle, signatures: Iterable[bytes]
    ) -> tuple[tuple[PublicKey, bytes], ...]:
        """Those of the signatures that are by one of the keys, each with it; at least one.

        Raises:
            ValueError: none is; says why of each signature.
        """
        accepted: list[tuple[PublicKey, bytes]] = []
        refused: list[str] = []
        for signature in signatures:
            try:
                accepted.append((self._verify(bundle, signature), signature))
            except ValueError as error:
                refused.append(str(error))
        if accepted:
            return tuple(accepted)
        found = "; ".join(refused) or "no signature"
        names = ", ".join(key.fingerprint[:12] for key in self.keys)
        raise ValueError(
            f"bundle {bundle.digest[:12]}: found {found}, allowed: a signature of its bytes by "
            f"one of the trusted keys {names}."
        )

    def _verify(self, bundle: Bundle, signature: bytes) -> PublicKey:
        payload, signed, hint = _opened(signature)
        keys = [key for key in self.keys if hint in ("", key.fingerprint)]
        if not keys:
            raise ValueError(f"a signature by the key {hint[:12]}")
        for key in keys:
            if key.verifies(signed, _message(payload)):
                _hold(bundle, payload)
                return key
        raise ValueError(f"a signature that the key {keys[0].fingerprint[:12]} did not make")


def sign(bundle: Bundle, key: str | Path) -> tuple[bytes, str]:
    """Sign a bundle.

    Args:
        bundle: an opened one.
        key: the file of a private key in PEM, such as ``openssl genpkey -algorithm EC -pkeyopt
            ec_paramgen_curve:P-256`` makes, that none but its owner can read.

    Returns:
        The signature's file, and the fingerprint of the key.

    Raises:
        ImportError: ``cryptography`` is not installed.
        OSError: the key cannot be read.
        ValueError: others can read it too, it is locked, or of another kind.
    """
    private = _private_key(Path(key))
    public = PublicKey.of(private.public_key(), str(key))
    payload = json.dumps(_statement(bundle), indent=1).encode()
    signed = private.sign(_message(payload), _ecdsa(private.curve.name))
    file = {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": public.fingerprint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signed).decode(), "keyid": ""}],
        },
    }
    return json.dumps(file).encode() + b"\n", public.fingerprint


def beside(path: Path) -> Path:
    """Where the signature of a bundle lies that no registry holds."""
    return path.with_name(path.name + SUFFIX)


def _ecdsa(curve: str) -> Any:
    hashes = need("cryptography.hazmat.primitives.hashes", "sign")
    ec = need("cryptography.hazmat.primitives.asymmetric.ec", "sign")
    return ec.ECDSA(getattr(hashes, _HASHES[curve])())


def _message(payload: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding, which names the payload's type."""
    return b"DSSEv1 %d %b %d %b" % (
        len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload
    )  # fmt: skip


def _digests(bundle: Bundle) -> dict[str, str]:
    """The SHA-256 of every file of a bundle, in the order of their names."""
    files = {name: entry["sha256"] for name, entry in bundle.manifest.files.items()}
    return dict(sorted({**files, MANIFEST: bundle.digest}.items()))


def _statement(bundle: Bundle) -> dict[str, Any]:
    digests = _digests(bundle)
    root = hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests.values()))
    return {
        "_type": _STATEMENT,
        "subject": [{"name": bundle.manifest.name, "digest": {"sha256": root.hexdigest()}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "resources": [
                {"name": name, "algorithm": "sha256", "digest": digest}
                for name, digest in digests.items()
            ],
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [],
            },
        },
    }


def _opened(signature: bytes) -> tuple[bytes, bytes, str]:
    """The payload, what signs it, and the fingerprint of the key that is said to have.

    Raises:
        ValueError: it is no signature in this form.
    """
    if len(signature) > _MOST_BYTES:
        raise ValueError(f"a signature of {len(signature)} bytes")
    try:
        file = json.loads(signature)
        envelope = file["dsseEnvelope"]
        (one,) = envelope["signatures"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        signed = base64.b64decode(one["sig"], validate=True)
        kinds = (file["mediaType"], envelope["payloadType"])
        hint = file["verificationMaterial"]["publicKey"].get("hint") or ""
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error):
        raise ValueError("what is no signature by a key") from None
    if kinds != (_MEDIA_TYPE, _PAYLOAD_TYPE) or not isinstance(hint, str):
        raise ValueError(f"a signature of the kind {kinds}")
    return payload, signed, hint


def _hold(bundle: Bundle, payload: bytes) -> None:
    """Hold what a trusted key signed against a bundle: all of its files, and no other bytes.

    Raises:
        ValueError: it is another bundle's, or no statement of a model's files.
    """
    try:
        statement = json.loads(payload)
        kinds = (statement["_type"], statement["predicateType"])
        resources: Sequence[Mapping[str, str]] = statement["predicate"]["resources"]
        said = [(str(r["name"]), str(r["algorithm"]), str(r["digest"])) for r in resources]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("a signature of what is no statement of files") from None
    if kinds != (_STATEMENT, _PREDICATE):
        raise ValueError(f"a signature of a statement of the kind {kinds}")
    wanted = [(name, "sha256", digest) for name, digest in _digests(bundle).items()]
    if sorted(said) != wanted:
        other = {name: digest for name, _, digest in said}.get(MANIFEST, "unknown")
        raise ValueError(f"a signature of another bundle, {other[:12]}")


def _private_key(path: Path) -> Any:
    serialization = need("cryptography.hazmat.primitives.serialization", "sign")
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if os.name == "posix" and mode & 0o077:
            raise wrong(f"{path}: its mode", oct(mode)[2:], f"600: run chmod 600 {path}")
        text = file.read(_MOST_BYTES)
    try:
        key = serialization.load_pem_private_key(text, None)
    except TypeError:
        raise wrong(
            f"{path}", "a key under a password", "one without, in a file of mode 600"
        ) from None
    except Exception:  # of many kinds, by what is broken; none may show the key
        raise wrong(f"{path}", "no private key", _KEYS) from None
    PublicKey.of(key.public_key(), str(path))
    return key
