"""The server of a site: which bundles it serves, and who must have signed them."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from drivetrain.core import packed
from drivetrain.core.bundle import Bundle
from drivetrain.core.durable import write
from drivetrain.core.errors import wrong
from drivetrain.core.placement import AUTO
from drivetrain.core.site import ServeSite, Site
from drivetrain.registry.registry import Registry
from drivetrain.registry.signature import Trust, beside, sign

if TYPE_CHECKING:
    from drivetrain.serve.execution.loading import Verify
    from drivetrain.serve.execution.models import Resolve
    from drivetrain.serve.execution.weights import Weights
    from drivetrain.serve.server import Server
    from drivetrain.serve.telemetry.traces import Tracing
    from drivetrain.serve.transport.tls import Tls
    from drivetrain.serve.workers.ahead import Ahead


def registry_of(site: Site) -> Registry:
    """The store of a site, which asks for the signatures that the site asks for.

    Raises:
        ImportError: the site asks for signatures, and ``cryptography`` is not installed.
        OSError: the trusted keys cannot be read.
        ValueError: the store is no directory, or the keys are none.
    """
    return Registry(site.store, Trust.load(site.trust) if site.trust else None)


def is_bundle(reference: str) -> bool:
    """Whether a reference is a path, and so no digest and no alias, which have no ``/``."""
    path = Path(reference)
    return "/" in reference or path.is_dir() or packed.is_packed(path)


def open_bundle(site: Site, reference: str) -> Bundle:
    """The bundle that a path, a digest or an alias means, every byte of it verified.

    Raises:
        FileNotFoundError: no bundle lies at the path.
        ValueError: no such bundle or alias, or a damaged one.
    """
    path = Path(reference)
    return Bundle.open(path) if is_bundle(reference) else registry_of(site).open(reference)


def sign_bundle(site: Site, reference: str, key: str | Path) -> tuple[Bundle, Path]:
    """Sign a stored bundle in its store, and one at a path beside it.

    Returns:
        The bundle, and the signature's file.

    Raises:
        FileNotFoundError: no bundle lies at the path.
        OSError: the key cannot be read; no space, no permission.
        ValueError: no such bundle or alias, a damaged one, or a key that others can read or that
            does not sign.
    """
    bundle = open_bundle(site, reference)
    if not is_bundle(reference):
        return bundle, registry_of(site).sign(bundle.digest, key)
    file = beside(bundle.path)
    write(file, sign(bundle, key)[0])
    return bundle, file


def pack_bundle(site: Site, reference: str, file: str | Path) -> Bundle:
    """Pack a bundle into one file for a device; a signature goes with it, beside it.

    Of several signatures it is one by a key that the site trusts.

    Raises:
        FileNotFoundError: no bundle lies at the path.
        OSError: no space, no permission; what lay there is then as it was.
        ValueError: no such bundle or alias, or a damaged one, or it is not signed as the site
            asks.
    """
    registry = registry_of(site)
    bundle = open_bundle(site, reference)
    signatures = _signatures(registry, bundle)
    if registry.trust is not None:
        accepted = registry.trust.accepted(bundle, signatures)
        signatures = tuple(signature for _, signature in accepted)
    made = bundle.pack(file)
    for signature in signatures[:1]:
        write(beside(made.path), signature)
    return made


@contextmanager
def serving(site: Site, references: Sequence[str], port: int | None = None) -> "Iterator[Server]":
    """The server of :func:`server_of`; of several workers one finds made what they share.

    Raises:
        Exception: as :func:`server_of`.
    """
    from drivetrain.serve.execution.weights import shared_weights
    from drivetrain.serve.workers.seat import seats_of

    with ExitStack() as stack:
        ahead = None
        if seats_of(site.serve.workers) > 1:
            weights = shared_weights(needed=site.serve.placement == AUTO)
            if weights is not None:
                stack.callback(weights.close)
                ahead = _ahead(site, references, weights)
                stack.callback(ahead.end)
        gc.disable()  # what is imported stays: to look for garbage there takes a tenth of a start
        try:
            server = server_of(site, references, port, ahead)
        finally:
            gc.enable()
        gc.freeze()
        stack.callback(gc.unfreeze)
        yield server


def _ahead(site: Site, references: Sequence[str], weights: "Weights") -> "Ahead":
    """Makes what the workers of a server share, from now on and in a process of its own."""
    from drivetrain.serve.execution.loading import Loader
    from drivetrain.serve.workers.ahead import Ahead

    def make() -> None:
        verify = _verify(registry_of(site))
        loader = Loader(weights, site.serve.placement, site.serve.parity, verify)
        for reference in references:
            loader.prepare(open_bundle(site, reference))

    return Ahead(weights, make)


def _verify(registry: Registry) -> "Verify | None":
    """Sees that somebody whom a store trusts has signed a bundle; None if it asks for nobody."""
    return None if registry.trust is None else lambda bundle: vouch(registry, bundle)


def server_of(
    site: Site, references: Sequence[str], port: int | None = None, ahead: "Ahead | None" = None
) -> "Server":
    """A server of aliases that move, or of bundles that stay.

    Args:
        site: says where it listens, what it keeps and whom it trusts.
        references: each an alias or a digest of the site's store; or the directory or the packed
            file of a bundle, served under the name of its system, its signature beside it.
        port: instead of the site's; 0 takes a free one.
        ahead: makes what its workers share; None lets one of them.

    Raises:
        FileNotFoundError: no bundle lies at a path.
        ValueError: no such bundle or alias, or a damaged one, or one that is not signed as the
            site asks, or two of one name.
    """
    from drivetrain.serve.server import Server
    from drivetrain.serve.state.states import Keeping
    from drivetrain.serve.telemetry.retention import Retention

    registry = registry_of(site)
    models: dict[str, Resolve | Path] = {}
    for reference in references:
        bundle = open_bundle(site, reference)  # fail before a port is taken
        if registry.trust is not None:
            vouch(registry, bundle)
        name = bundle.manifest.name if is_bundle(reference) else reference
        if name in models:
            raise wrong("served name", name, "each name once")
        models[name] = (
            bundle.path.absolute() if is_bundle(reference) else _followed(registry, reference)
        )
    return Server(
        models,
        verify=_verify(registry),
        host=site.serve.host,
        port=site.serve.port if port is None else port,
        management_port=site.serve.management_port or None,
        token=site.serve.token(),
        tls=_tls(site.serve),
        access_log=Path(site.serve.access_log) if site.serve.access_log else None,
        tracing=_tracing(site.serve),
        feedback=Path(site.serve.feedback) if site.serve.feedback else None,
        retention=Retention(bytes=site.serve.feedback_bytes, days=site.serve.feedback_days),
        workers=site.serve.workers,
        hang_seconds=site.serve.hang_seconds,
        placement=site.serve.placement,
        parity=site.serve.parity,
        state=Keeping(
            place=site.serve.state,
            bytes=site.serve.state_bytes,
            ahead=site.serve.state_ahead,
            missing=site.serve.state_missing,
        ),
        ahead=ahead,
    )


def _tls(serve: ServeSite) -> "Tls | None":
    from drivetrain.serve.transport.tls import Tls

    if serve.tls_certificate:
        return Tls(serve.tls_certificate, serve.tls_key or None, serve.tls_client_ca or None)
    for option in ("tls_key", "tls_client_ca"):
        if getattr(serve, option):
            raise wrong(option, getattr(serve, option), "none without tls_certificate")
    return None


def _tracing(serve: ServeSite) -> "Tracing | None":
    from drivetrain.serve.telemetry.traces import Tracing

    if not serve.traces:
        return None
    return Tracing(endpoint=serve.traces, share=serve.traces_share)


def vouch(registry: Registry, bundle: Bundle) -> None:
    """See that somebody whom a store trusts has signed a bundle, in the store or beside it.

    Raises:
        ValueError: nobody has.
    """
    assert registry.trust is not None, "who asks for signatures says whose"
    registry.trust.check(bundle, _signatures(registry, bundle))


def _signatures(registry: Registry, bundle: Bundle) -> tuple[bytes, ...]:
    file = beside(bundle.path)
    kept = (file.read_bytes(),) if file.is_file() else ()
    return (*kept, *registry.signatures(bundle.digest))


def _followed(registry: Registry, reference: str) -> "Resolve":
    """Asks the store what an alias means now."""
    from drivetrain.serve.execution.models import Artefact, Traffic

    def artefact(digest: str) -> Artefact:
        return Artefact(digest, registry.path(digest))

    def current() -> Traffic:
        if registry.is_digest(reference):
            return Traffic(stable=artefact(registry.resolve(reference)))
        now = registry.traffic(reference)
        return Traffic(
            stable=artefact(now.bundle),
            canary=artefact(now.canary) if now.canary else None,
            share=now.share,
            shadow=artefact(now.shadow) if now.shadow else None,
        )

    return current
