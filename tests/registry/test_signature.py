"""A bundle is believed to be somebody's only if a key that is trusted signed these very bytes."""

import base64
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drivetrain.core.bundle import Bundle
from drivetrain.registry.registry import Registry
from drivetrain.registry.signature import PublicKey, Trust, beside, sign

Make = Callable[..., tuple]
Keys = Callable[..., tuple[Path, Path]]


def write_key(
    folder: Path, name: str, key: Any, password: bytes | None = None
) -> tuple[Path, Path]:
    lock = serialization.NoEncryption()
    if password:
        lock = serialization.BestAvailableEncryption(password)
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    form = serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, lock))
    private.chmod(0o600)
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """``keys(name)`` makes a pair: the files of the private and of the public key."""

    def make(name: str, curve: Any = None) -> tuple[Path, Path]:
        return write_key(tmp_path, name, ec.generate_private_key(curve or ec.SECP256R1()))

    return make


@pytest.fixture
def store(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "store")


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_what_a_key_signed_its_public_key_verifies(
    store: Registry, parts: Make, keys: Keys, curve: Any
):
    private, public = keys("lab", curve)
    bundle = store.write(*parts())
    path = store.sign(bundle.digest, private)
    key = store.verify(bundle.digest, public)
    assert path.name == f"{bundle.digest}.{key.fingerprint[:16]}.sig"
    assert Bundle.open(bundle.path).digest == bundle.digest  # it does not lie in the bundle


def test_without_a_signature_nothing_is_verified(store: Registry, parts: Make, keys: Keys):
    _, public = keys("lab")
    bundle = store.write(*parts())
    says = f"bundle {bundle.digest[:12]}: found no signature, allowed: a signature .* trusted keys"
    with pytest.raises(ValueError, match=says):
        store.verify(bundle.digest, public)


def test_another_key_is_named_and_refused(store: Registry, parts: Make, keys: Keys):
    (stranger, other), (_, public) = keys("stranger"), keys("lab")
    bundle = store.write(*parts())
    store.sign(bundle.digest, stranger)
    name = Trust.load(other).keys[0].fingerprint[:12]
    with pytest.raises(ValueError, match=f"found a signature by the key {name}, allowed: "):
        store.verify(bundle.digest, public)


def test_a_signature_that_claims_a_trusted_key_is_refused(store: Registry, parts: Make, keys: Keys):
    (stranger, _), (_, public) = keys("stranger"), keys("lab")
    trust = Trust.load(public)
    bundle = store.write(*parts())
    signature, fingerprint = sign(bundle, stranger)
    for hint in (trust.keys[0].fingerprint, ""):
        claimed = signature.replace(fingerprint.encode(), hint.encode())
        with pytest.raises(ValueError, match=r"that the key .* did not make"):
            trust.check(bundle, [claimed])


def test_the_signature_of_another_bundle_is_refused(store: Registry, parts: Make, keys: Keys):
    private, public = keys("lab")
    one, other = store.write(*parts(1.0)), store.write(*parts(2.0))
    path = store.sign(one.digest, private)
    path.rename(path.with_name(path.name.replace(one.digest, other.digest)))
    says = f"bundle {other.digest[:12]}: found a signature of another bundle, {one.digest[:12]}"
    with pytest.raises(ValueError, match=says):
        store.verify(other.digest, public)


def test_a_bundle_of_which_any_file_was_changed_is_refused(
    store: Registry, parts: Make, keys: Keys
):
    private, public = keys("lab")
    bundle = store.write(*parts())
    store.sign(bundle.digest, private)
    for file in sorted(bundle.path.iterdir()):
        data = file.read_bytes()
        file.write_bytes(data.replace(b"x", b"z", 1))
        assert file.read_bytes() != data
        with pytest.raises(ValueError, match=file.name):
            store.verify(bundle.digest, public)
        file.write_bytes(data)
    assert store.verify(bundle.digest, public)


def test_a_bundle_whose_manifest_was_made_to_fit_is_refused(
    store: Registry, parts: Make, keys: Keys, tmp_path: Path
):
    """Whoever changes a model can write its digests anew, but not sign them."""
    private, public = keys("lab")
    bundle = store.write(*parts(1.0))
    signature, _ = sign(bundle, private)
    changed = Bundle.write(tmp_path / "changed", *parts(1.5))
    with pytest.raises(ValueError, match="a signature of another bundle"):
        Trust.load(public).check(changed, [signature])


def test_keys_are_changed_without_a_gap(store: Registry, parts: Make, keys: Keys, tmp_path: Path):
    (old, old_public), (new, new_public) = keys("old"), keys("new")
    first, second = store.write(*parts(1.0)), store.write(*parts(2.0))
    store.sign(first.digest, old)
    both = tmp_path / "both.pub"
    both.write_bytes(b"# of 2025\n" + old_public.read_bytes() + new_public.read_bytes())
    store.sign(second.digest, new)
    assert {store.verify(b.digest, both).fingerprint for b in (first, second)} == {
        key.fingerprint for key in Trust.load(both).keys
    }
    with pytest.raises(ValueError, match="a signature by the key"):
        store.verify(first.digest, new_public)
    store.sign(first.digest, new)
    assert len(store.signatures(first.digest)) == 2
    for public in (old_public, new_public):
        assert store.verify(first.digest, public)


def test_an_alias_means_only_what_is_signed(tmp_path: Path, parts: Make, keys: Keys):
    private, public = keys("lab")
    store = Registry(tmp_path / "store", Trust.load(public))
    one, other = store.write(*parts(1.0)), store.write(*parts(2.0))
    store.sign(one.digest, private)
    assert store.promote(one.digest, "prod").digest == one.digest
    for refused in (
        lambda: store.promote(other.digest, "prod"),
        lambda: store.canary("prod", other.digest, 0.5),
        lambda: store.shadow("prod", other.digest),
    ):
        with pytest.raises(ValueError, match="found no signature"):
            refused()
    assert store.aliases() == {"prod": one.digest}
    Registry(store.root).promote(other.digest, "prod")  # by somebody who does not ask
    store.sign(other.digest, private)
    for path in (store.root / "signatures").glob(f"{one.digest}.*"):
        path.unlink()
    with pytest.raises(ValueError, match="found no signature"):
        store.rollback("prod")
    assert store.aliases() == {"prod": other.digest}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o666])
def test_a_private_key_that_others_can_reach_is_refused(
    store: Registry, parts: Make, keys: Keys, mode: int
):
    private, _ = keys("lab")
    private.chmod(mode)
    bundle = store.write(*parts())
    with pytest.raises(ValueError, match=rf"lab\.pem: its mode: found '{mode:o}', allowed: 600"):
        store.sign(bundle.digest, private)
    assert store.signatures(bundle.digest) == ()


def test_keys_of_another_kind_are_refused_by_name(
    store: Registry, parts: Make, keys: Keys, tmp_path: Path
):
    bundle = store.write(*parts())
    other = (
        ("Ed25519", ed25519.Ed25519PrivateKey.generate()),
        ("RSA", rsa.generate_private_key(65537, 1024)),
        ("secp256k1", ec.generate_private_key(ec.SECP256K1())),
    )
    for name, key in other:
        private, public = write_key(tmp_path, name, key)
        for refused in (lambda p=private: sign(bundle, p), lambda p=public: Trust.load(p)):
            with pytest.raises(ValueError, match=f"{name}.*allowed: keys on the curves P-256"):
                refused()
    locked, _ = write_key(tmp_path, "locked", ec.generate_private_key(ec.SECP256R1()), b"word")
    with pytest.raises(ValueError, match="found 'a key under a password'"):
        sign(bundle, locked)
    private, public = keys("lab")
    public.chmod(0o600)
    with pytest.raises(ValueError, match="found 'no private key'"):
        sign(bundle, public)
    with pytest.raises(ValueError, match="found 'no public key'"):
        Trust.load(private)
    broken = public.read_bytes().replace(b"\nMFk", b"\nAAA")
    public.write_bytes(broken)
    with pytest.raises(ValueError, match="a key that cannot be read"):
        Trust.load(public)


@pytest.fixture
def signed(store: Registry, parts: Make, keys: Keys) -> tuple[Bundle, bytes, Trust]:
    private, public = keys("lab")
    bundle = store.write(*parts())
    return bundle, sign(bundle, private)[0], Trust.load(public)


def test_no_changed_byte_of_a_signature_makes_it_another_that_verifies(
    signed: tuple[Bundle, bytes, Trust],
):
    bundle, signature, trust = signed
    payload = json.loads(signature)["dsseEnvelope"]["payload"].encode()
    start = signature.index(payload)
    for place in range(start, start + len(payload), 7):
        byte = b"A" if signature[place : place + 1] != b"A" else b"B"
        with pytest.raises(ValueError, match=f"bundle {bundle.digest[:12]}: found "):
            trust.check(bundle, [signature[:place] + byte + signature[place + 1 :]])


@given(st.binary(max_size=100) | st.recursive(
    st.none() | st.booleans() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(
        st.sampled_from(["mediaType", "dsseEnvelope", "signatures", "verificationMaterial",
                         "publicKey", "payload", "sig"]), inner, max_size=4),
    max_leaves=8,
).map(lambda data: json.dumps(data).encode()))  # fmt: skip
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_no_signature_is_said_to_be_none(signed: tuple[Bundle, bytes, Trust], data: bytes):
    bundle, _, trust = signed
    with pytest.raises(ValueError, match=r"found (what is no signature|a signature of the kind)"):
        trust.check(bundle, [data])


def test_one_good_signature_among_bad_ones_is_enough(signed: tuple[Bundle, bytes, Trust]):
    bundle, signature, trust = signed
    bad = [b"", b"[" * 100_000, bytes(2 << 20), b"{}"]
    assert trust.check(bundle, [*bad, signature]) == trust.keys[0]
    with pytest.raises(ValueError, match="a signature of 2097152 bytes; what is no signature"):
        trust.check(bundle, bad)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"_type": "other"}, "a statement of the kind"),
        ({"predicateType": "https://slsa.dev/provenance/v1"}, "a statement of the kind"),
        ({"predicate": {"resources": []}}, "a signature of another bundle, unknown"),
        ({"predicate": None}, "no statement of files"),
    ],
)
def test_a_trusted_key_that_signed_something_else_vouches_for_nothing(
    store: Registry,
    parts: Make,
    keys: Keys,
    monkeypatch: pytest.MonkeyPatch,
    change: Any,
    says: str,
):
    from drivetrain.registry import signature

    private, public = keys("lab")
    bundle = store.write(*parts())
    plain = signature._statement(bundle)
    monkeypatch.setattr(signature, "_statement", lambda bundle: {**plain, **change})
    with pytest.raises(ValueError, match=says):
        Trust.load(public).check(bundle, [sign(bundle, private)[0]])


def test_fewer_or_more_files_than_the_bundle_has_are_refused(
    store: Registry, parts: Make, keys: Keys, monkeypatch: pytest.MonkeyPatch
):
    from drivetrain.registry import signature

    private, public = keys("lab")
    bundle = store.write(*parts())
    plain = signature._statement(bundle)
    files = plain["predicate"]["resources"]
    for resources in (files[:-1], [*files, files[0]], [*files, {**files[0], "name": "run.sh"}]):
        statement = {**plain, "predicate": {**plain["predicate"], "resources": resources}}
        monkeypatch.setattr(signature, "_statement", lambda bundle, found=statement: found)
        with pytest.raises(ValueError, match="a signature of another bundle"):
            Trust.load(public).check(bundle, [sign(bundle, private)[0]])


def test_the_signature_of_a_packed_bundle_is_that_of_its_directory(
    signed: tuple[Bundle, bytes, Trust], tmp_path: Path
):
    bundle, signature, trust = signed
    packed = bundle.pack(tmp_path / "made.bundle")
    beside(packed.path).write_bytes(signature)
    assert trust.check(packed, [(tmp_path / "made.bundle.sig").read_bytes()])


THEIRS = """
import sys, model_signing
verb, model, signature, key = sys.argv[1:]
if verb == "sign":
    model_signing.signing.Config().use_elliptic_key_signer(private_key=key).sign(model, signature)
else:
    verify = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=key).verify
    verify(model, signature)
"""


@pytest.fixture(scope="module")
def model_signing(
    environment: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    """The package, in an environment of its own: it brings two dozen others."""
    python = environment("model-signing", "model-signing==1.1.1", "pyopenssl", constraints=True)
    home = tmp_path_factory.mktemp("home")

    def run(verb: str, *arguments: Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [python, "-c", THEIRS, verb, *arguments], capture_output=True, text=True, timeout=60,
            env={**os.environ, "HOME": str(home)}, check=False,
        )  # fmt: skip

    return run


@pytest.mark.slow
def test_model_signing_verifies_what_we_sign_and_we_what_it_signs(
    model_signing: Callable[..., Any], store: Registry, parts: Make, keys: Keys, tmp_path: Path
):
    private, public = keys("lab", ec.SECP384R1())
    bundle = store.write(*parts())
    ours = store.sign(bundle.digest, private)
    assert model_signing("verify", bundle.path, ours, public).returncode == 0
    theirs = tmp_path / "theirs.sig"
    assert model_signing("sign", bundle.path, theirs, private).returncode == 0
    trust = Trust.load(public)
    assert isinstance(trust.check(bundle, [theirs.read_bytes()]), PublicKey)
    other = store.write(*parts(3.0))
    assert model_signing("verify", other.path, ours, public).returncode != 0
    payload = json.loads(ours.read_bytes())["dsseEnvelope"]["payload"]
    assert b"manifest.json" in base64.b64decode(payload)
