"""What a site serves: an alias or a path, signed by those whom the site trusts."""

import json
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from onnx import TensorProto, helper

from drivetrain.cli import main
from drivetrain.core.bundle import Bundle, Manifest
from drivetrain.core.graph import Graph
from drivetrain.core.site import ServeSite, Site
from drivetrain.registry.registry import Registry
from drivetrain.registry.signature import Trust, beside
from drivetrain.serve.execution.models import Artefact, Traffic
from drivetrain.serve.server import Server, running
from drivetrain.serving import open_bundle, registry_of, server_of, sign_bundle, vouch


def made(factor: float) -> tuple[Graph, Manifest, dict[Any, Any]]:
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["score"])],
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows"])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["rows"])],
        [helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])],
    )
    model = Graph.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    return model, Manifest(name="made", inputs=model.inputs, outputs=model.outputs), {}


def write_key(folder: Path, name: str) -> Path:
    """A pair of files; gives the private one, beside which the public one lies as ``.pub``."""
    key = ec.generate_private_key(ec.SECP256R1())
    file = folder / f"{name}.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    file.chmod(0o600)
    file.with_suffix(".pub").write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return file


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return write_key(tmp_path, "lab")


@pytest.fixture
def store(tmp_path: Path) -> Registry:
    """A store in which nobody asks for signatures."""
    return Registry(tmp_path / "store")


@pytest.fixture
def site(store: Registry, key: Path) -> Site:
    """A site that asks for them."""
    trust = str(key.with_suffix(".pub"))
    return Site(store=str(store.root), trust=trust, serve=ServeSite(port=0))


@pytest.fixture
def drive(site: Site, tmp_path: Path, capsys: Any) -> Callable[..., tuple[int, str, str]]:
    """Runs a verb on the site: its status, its output, its errors."""
    file = tmp_path / "site.toml"
    file.write_text(f'store = "{site.store}"\ntrust = "{site.trust}"\n')

    def run(*arguments: object) -> tuple[int, str, str]:
        return main([*map(str, arguments), "--on", str(file)]), *capsys.readouterr()

    return run


def score(url: str, model: str = "made") -> float:
    request = urllib.request.Request(f"{url}/predict/{model}", b'{"x": 1.0}')
    with urllib.request.urlopen(request, timeout=10) as reply:
        return json.load(reply)["predictions"][0]["score"]


def test_a_site_without_trust_asks_for_no_signature(store: Registry):
    store.promote(store.write(*made(2.0)).digest, "prod")
    with running(server_of(Site(store=str(store.root)), ["prod"], 0)) as url:
        assert score(url, "prod") == 2.0


def test_what_is_not_signed_is_neither_promoted_nor_served(
    drive: Any, store: Registry, site: Site, key: Path, tmp_path: Path
):
    digest = store.write(*made(2.0)).digest
    status, _, err = drive("promote", digest, "prod")
    assert status == 2
    assert f"bundle {digest[:12]}: found no signature, allowed: a signature of its bytes" in err
    store.promote(digest, "prod")  # by somebody whose site does not ask
    with pytest.raises(ValueError, match="found no signature"):
        server_of(site, ["prod"])
    stranger = write_key(tmp_path, "stranger")
    assert drive("sign", digest, "--key", stranger)[0] == 0
    with pytest.raises(ValueError, match="found a signature by the key"):
        server_of(site, ["prod"])
    status, out, _ = drive("sign", "prod", "--key", key, "--json")
    assert status == 0
    assert json.loads(out)["bundle"] == digest
    assert drive("promote", digest, "prod")[0] == 0
    with running(server_of(site, ["prod"], 0)) as url:
        assert score(url, "prod") == 2.0


def test_what_is_said_to_be_served_are_the_names_that_clients_ask_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    bundle = Bundle.write(tmp_path / "elsewhere", *made(2.0))
    monkeypatch.setattr(Server, "run", lambda _, started: started() or 0)
    assert main(["serve", str(bundle.path), "--port", "8123"]) == 0
    assert capsys.readouterr().out == "serving made at http://127.0.0.1:8123\n"


def test_a_key_that_others_can_read_does_not_sign(drive: Any, store: Registry, key: Path):
    digest = store.write(*made(2.0)).digest
    key.chmod(0o644)
    status, _, err = drive("sign", digest, "--key", key)
    assert status == 2
    assert f"{key}: its mode: found '644', allowed: 600" in err
    assert store.signatures(digest) == ()


def test_a_hot_swap_to_what_is_not_signed_is_refused_and_the_present_goes_on(
    store: Registry, site: Site, key: Path
):
    one, other, third = (store.write(*made(factor)) for factor in (1.0, 2.0, 3.0))
    for bundle in (one, third):
        store.sign(bundle.digest, key)
    asking = registry_of(site)
    now = [one]

    def current() -> Traffic:
        return Traffic(stable=Artefact(now[0].digest, now[0].path))

    def refusals(url: str) -> float:
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        found = [line for line in lines if line.startswith("drivetrain_reload_failures_total{")]
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def wait_until(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.02)

    def verify(bundle: Bundle) -> None:
        vouch(asking, bundle)

    server = Server({"made": current}, verify=verify, port=0, reload_seconds=0.02)
    with running(server) as url:
        assert score(url) == 1.0
        now[0] = other
        wait_until(lambda: refusals(url) == 1.0)
        assert score(url) == 1.0
        now[0] = third
        wait_until(lambda: score(url) == 3.0)
        assert refusals(url) == 1.0


def test_a_server_does_not_begin_with_what_is_not_signed(store: Registry, site: Site):
    bundle = store.write(*made(1.0))
    asking = registry_of(site)
    server = Server({"made": bundle.path}, verify=lambda found: vouch(asking, found), port=0)
    with pytest.raises(ValueError, match="found no signature"), running(server):
        pass


def test_a_packed_bundle_is_signed_and_served_where_it_lies(
    drive: Any, store: Registry, site: Site, key: Path, tmp_path: Path
):
    digest = store.write(*made(4.0)).digest
    file = tmp_path / "device" / "made.bundle"
    assert drive("pack", digest[:12], file)[0] == 2
    assert not file.exists()
    packed = store.open(digest).pack(file)
    assert packed.digest == digest
    with pytest.raises(ValueError, match="found no signature"):
        server_of(site, [str(file)])
    assert drive("sign", file, "--key", key)[0] == 0
    assert sorted(path.name for path in file.parent.iterdir()) == ["made.bundle", "made.bundle.sig"]
    with running(server_of(site, [str(file)], 0)) as url:
        assert score(url) == 4.0
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"made\.bundle"):
        server_of(site, [str(file)])


def test_what_is_packed_takes_a_trusted_signature_along(
    drive: Any, store: Registry, site: Site, key: Path, tmp_path: Path
):
    bundle = store.write(*made(4.0))
    for by in (write_key(tmp_path, "a"), key, write_key(tmp_path, "z")):
        store.sign(bundle.digest, by)
    file = tmp_path / "device" / "made.bundle"
    assert drive("pack", bundle.digest[:12], file) == (0, f"packed: {file}\n", "")
    alone = Site(store=str(tmp_path / "none"), trust=site.trust)
    vouch(registry_of(alone), open_bundle(alone, str(file)))
    again = tmp_path / "again" / "made.bundle"
    assert drive("pack", file, again)[0] == 0
    for suffix in ("", ".sig"):
        assert again.with_name(f"made.bundle{suffix}").read_bytes() == (
            file.with_name(f"made.bundle{suffix}").read_bytes()
        )


def test_a_signature_in_the_store_vouches_for_the_same_bundle_elsewhere(
    store: Registry, site: Site, key: Path, tmp_path: Path
):
    bundle = store.write(*made(4.0))
    store.sign(bundle.digest, key)
    packed = bundle.pack(tmp_path / "made.bundle")
    assert not beside(packed.path).exists()
    vouch(registry_of(site), packed)
    other = Bundle.write(tmp_path / "other", *made(5.0))
    beside(other.path).write_bytes(store.signatures(bundle.digest)[0])
    with pytest.raises(ValueError, match="a signature of another bundle"):
        vouch(registry_of(site), other)


def test_a_path_and_an_alias_are_told_apart(store: Registry, site: Site, tmp_path: Path):
    bundle = store.write(*made(1.0))
    assert open_bundle(site, bundle.digest).digest == bundle.digest
    assert open_bundle(site, str(bundle.path)).path == bundle.path
    with pytest.raises(FileNotFoundError, match=r"no bundle at .*absent\.bundle"):
        open_bundle(site, str(tmp_path / "absent.bundle"))
    with pytest.raises(ValueError, match="unknown alias 'absent'"):
        open_bundle(site, "absent")


def test_a_bundle_in_a_directory_is_signed_beside_it_not_in_it(
    site: Site, key: Path, tmp_path: Path
):
    bundle = Bundle.write(tmp_path / "made", *made(1.0))
    _, file = sign_bundle(site, str(bundle.path), key)
    assert file == tmp_path / "made.sig"
    assert Bundle.open(bundle.path).digest == bundle.digest
    assert Trust.load(site.trust).check(bundle, [file.read_bytes()])


def test_a_site_whose_keys_are_none_says_so(store: Registry, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"lab\.pub"):
        registry_of(Site(store=str(store.root), trust=str(tmp_path / "lab.pub")))
    (tmp_path / "lab.pub").write_text("ssh-ed25519 AAAA lab\n")
    with pytest.raises(ValueError, match="found 'no public key', allowed: keys on the curves"):
        registry_of(Site(store=str(store.root), trust=str(tmp_path / "lab.pub")))


def test_several_aliases_are_served_each_under_its_name(store: Registry, tmp_path: Path):
    for factor, alias in ((2.0, "double"), (3.0, "triple")):
        store.promote(store.write(*made(factor)).digest, alias)
    packed = store.open("triple").pack(tmp_path / "made.bundle").path
    site = Site(store=str(store.root))
    with running(server_of(site, ["double", "triple", str(packed)], 0)) as url:
        scores = [score(url, name) for name in ("double", "triple", "made")]
    assert scores == [2.0, 3.0, 3.0]
    with pytest.raises(ValueError, match="served name: found 'double', allowed: each name once"):
        server_of(site, ["double", "double"])


def test_a_site_says_how_long_a_run_may_take(store: Registry):
    store.promote(store.write(*made(2.0)).digest, "alias")
    site = Site(store=str(store.root), serve=ServeSite(port=0, hang_seconds=120))
    assert server_of(site, ["alias"])._hang_seconds == 120
    short = Site(store=str(store.root), serve=ServeSite(port=0, hang_seconds=1))
    with pytest.raises(ValueError, match="hang_seconds: found 1, allowed: 2 or more"):
        server_of(short, ["alias"])
