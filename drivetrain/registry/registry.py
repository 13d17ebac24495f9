"""A directory of content-addressed bundles, of aliases that name them and of what was measured."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drivetrain.core import durable
from drivetrain.core.bundle import MANIFEST, Bundle, Manifest, pack
from drivetrain.core.errors import unknown, wrong
from drivetrain.core.graph import Graph
from drivetrain.core.measured import Fitted
from drivetrain.core.metric import Metric
from drivetrain.registry.alias import Alias, Change, Signature
from drivetrain.registry.rooms import Rooms, is_directory, read
from drivetrain.registry.signature import SUFFIX, PublicKey, Trust, sign

DIGEST = re.compile(r"[0-9a-f]{64}")
PREFIX = re.compile(r"[0-9a-f]{8,64}")
ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Ancestor:
    """One step of a lineage.

    Attributes:
        role: what it was to the bundle that was made of it, such as ``events`` or ``bundle``.
        digest: SHA-256, hexadecimal.
        depth: 0 for the bundle itself, 1 for its parents.
        manifest: of the bundle with that digest; None for what is no bundle of this store.
    """

    role: str
    digest: str
    depth: int
    manifest: Manifest | None


class Registry(Rooms):
    """A store of bundles in a local directory.

    ``bundles/<digest>/`` are immutable and named by the SHA-256 of their manifest, which names
    the SHA-256 of every other file. ``aliases/<name>.json`` say which bundles a name means and
    all that was ever done to it. ``measured/<digest>.jsonl`` keep what is not the same in every
    run, such as timings. ``signatures/<digest>.<key>.sig`` say who vouches for a bundle. Nothing
    is created before the first write, and reading needs no right to write. Writers in several
    processes exclude one another by ``flock``.

    A ``ref`` is a digest, at least 8 of its first characters, either with ``sha256:`` in front,
    or an alias.
    """

    def __init__(self, root: Path | str, trust: Trust | None = None) -> None:
        """
        Args:
            root: the store's directory.
            trust: whoever must have signed a bundle before an alias may mean it; None asks for no
                signature.

        Raises:
            ValueError: the store is at a URL, or is no directory.
        """
        super().__init__(root)
        self.trust = trust

    # -- bundles -------------------------------------------------------------------------------

    def write(self, graph: Graph, manifest: Manifest, fitted: Fitted) -> Bundle:
        """Store a bundle; what is stored already is opened.

        Raises:
            OSError: no space, no permission; the store is then as it was.
            ValueError: the same bundle is stored already and was damaged since.
        """
        contents = pack(graph, manifest, fitted)

        def fill(directory: Path) -> None:
            for name, data in contents.items():
                (directory / name).write_bytes(data)

        return self._store(hashlib.sha256(contents[MANIFEST]).hexdigest(), fill)

    def add(self, path: Path | str) -> Bundle:
        """Import a bundle from a directory or a packed file; the copy is verified before it has
        its name.

        Raises:
            FileNotFoundError: no bundle lies there.
            ValueError: a file of it is absent, was changed or is one that no manifest names.
            OSError: no space, no permission; the store is then as it was.
        """
        bundle = Bundle.open(path)

        def fill(directory: Path) -> None:
            for name in (MANIFEST, *bundle.manifest.files):
                target = directory / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(bundle.read(name))

        return self._store(bundle.digest, fill)

    def _store(self, digest: str, fill: Any) -> Bundle:
        path = self.room("bundles") / digest
        if not os.path.lexists(path):
            with self.writing(), durable.directory(path) as temporary:
                fill(temporary)
                Bundle.open(temporary, digest)
        return self.open(digest)

    def open(self, ref: str) -> Bundle:
        """The bundle that ``ref`` means, every byte of it verified.

        Raises:
            ValueError: no such bundle or alias, more than one, or a damaged one.
        """
        path = self.path(ref)
        return Bundle.open(path, path.name)

    def path(self, ref: str) -> Path:
        """Where the bundle that ``ref`` means lies, nothing of it read yet.

        Raises:
            ValueError: no such bundle or alias, or more than one.
        """
        path = self.room("bundles") / self.resolve(ref)
        if not is_directory(path):
            raise unknown("bundle", ref, (d[:12] for d in self.bundles()), str(self.root))
        return path

    def bundles(self) -> tuple[str, ...]:
        """The digests of the stored bundles, sorted."""
        try:
            entries = list(os.scandir(self.room("bundles")))
        except FileNotFoundError:
            return ()
        return tuple(
            sorted(
                entry.name
                for entry in entries
                if DIGEST.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            )
        )

    def resolve(self, ref: str) -> str:
        """The digest that ``ref`` means; a full digest need not be stored.

        Raises:
            ValueError: no such bundle or alias, or more than one.
        """
        prefix = ref.removeprefix("sha256:")
        if DIGEST.fullmatch(prefix):
            return prefix
        if PREFIX.fullmatch(prefix):
            found = [digest for digest in self.bundles() if digest.startswith(prefix)]
            if len(found) > 1:
                shown = ", ".join(found)
                raise ValueError(f"bundle {ref!r} is ambiguous: it may be any of {shown}.")
            if not found:
                raise unknown("bundle", ref, (d[:12] for d in self.bundles()), str(self.root))
            return found[0]
        _check_alias(ref)
        entry = self._alias(ref)
        if entry is None:
            raise unknown("alias", ref, self.aliases(), str(self.root))
        return entry.bundle

    @staticmethod
    def is_digest(ref: str) -> bool:
        """Whether a ref names a bundle by its digest, for good; any other is an alias."""
        return PREFIX.fullmatch(ref.removeprefix("sha256:")) is not None

    def lineage(self, ref: str) -> tuple[Ancestor, ...]:
        """A bundle and what it was made of, nearest first, through every stored bundle.

        Raises:
            ValueError: no such bundle, or a damaged one on the way.
        """
        found: dict[str, Ancestor] = {}
        queue = [("bundle", self.resolve(ref), 0)]
        for role, digest, depth in queue:
            if digest in found:
                continue
            stored = depth == 0 or (DIGEST.fullmatch(digest) and digest in self.bundles())
            manifest = self.open(digest).manifest if stored else None
            found[digest] = Ancestor(role, digest, depth, manifest)
            if manifest is not None:
                queue.extend((key, value, depth + 1) for key, value in manifest.parents.items())
        return tuple(found.values())

    # -- aliases -------------------------------------------------------------------------------

    def aliases(self) -> dict[str, str]:
        """Each alias with the digest of its bundle, sorted by name.

        Raises:
            ValueError: an alias is damaged.
        """
        try:
            names = sorted(os.listdir(self.room("aliases")))
        except FileNotFoundError:
            return {}
        stems = (n.removesuffix(".json") for n in names if n.endswith(".json"))
        entries = {name: self._alias(name) for name in stems if ALIAS.fullmatch(name)}
        return {name: entry.bundle for name, entry in entries.items() if entry is not None}

    def traffic(self, alias: str) -> Alias:
        """What an alias means now: the bundle that answers, its canary and its shadow.

        Raises:
            ValueError: no such alias, or a damaged one.
        """
        _check_alias(alias)
        entry = self._alias(alias)
        if entry is None:
            raise unknown("alias", alias, self.aliases(), str(self.root))
        return entry

    def history(self, alias: str) -> tuple[Change, ...]:
        """All that was ever done to an alias, the oldest first; nothing in it is forgotten.

        Raises:
            ValueError: no such alias, or a damaged one.
        """
        return self.traffic(alias).changes

    def promote(self, ref: str, alias: str) -> Bundle:
        """Let ``alias`` mean the bundle ``ref``; a reader sees the old one or the new one.

        A canary ends, whichever bundle it is: it was held against the one that answered until
        now. Promoting what answers already changes nothing.

        Raises:
            ValueError: no such bundle, a damaged one, a name that no alias may have, or a bound
                of the bundle's probes that does not hold (each is named).
        """
        _check_alias(alias)
        bundle = self._held(self._vouched(ref), f"promoted to {alias!r}")
        with self.locked():
            now, entry = Signature.now(), self._alias(alias)
            if entry is None:
                self._put(alias, None, Alias.born(bundle.digest, now))
            else:
                self._put(alias, entry, entry.promoted(bundle.digest, now))
        return bundle

    def rollback(self, alias: str) -> Bundle:
        """Undo the last change of who answers; the bounds are not asked anew.

        A running canary ends, and the stable bundle stays. Without one, the bundle that answered
        before answers again. A shadow stays: nobody gets its answers.

        Returns:
            The bundle that answers now.

        Raises:
            ValueError: no such alias, no canary and nothing before, or that bundle is gone or
                damaged.
        """
        self.traffic(alias)  # raises for an unknown alias before anything is created
        with self.locked():
            entry = self.traffic(alias)
            try:
                before = entry.rolled_back(Signature.now())
            except ValueError as error:
                raise ValueError(f"alias {alias!r} {error}") from None
            if before.bundle != entry.bundle:
                self._vouched(before.bundle)  # what is damaged must not answer
            self._put(alias, entry, before)
        return self.open(before.bundle)

    def canary(self, alias: str, ref: str, share: float) -> Bundle:
        """Let the bundle ``ref`` answer a share of the requests of ``alias``.

        It answers real requests, so its bounds gate it as they gate a promotion, and it must take
        and give the same columns as the stable bundle: else a request would fail by chance.

        Args:
            alias: one that means a bundle already.
            ref: the bundle.
            share: above 0 and at most 1.

        Raises:
            ValueError: no such alias or bundle, a damaged one, it answers already, other columns,
                no such share, or a bound that does not hold.
        """
        stable = self.open(self.traffic(alias).bundle)
        bundle = self._held(self._vouched(ref), f"made a canary of {alias!r}")
        for side in ("inputs", "outputs"):
            found, allowed = (set(getattr(b.manifest, side)) for b in (bundle, stable))
            if found != allowed:
                raise wrong(
                    f"{side} of the canary {bundle.digest[:12]}",
                    ", ".join(sorted(f.name for f in found ^ allowed)) + " differ",
                    f"those of {stable.digest[:12]}, which answers the other requests",
                )
        with self.locked():
            entry = self.traffic(alias)
            self._put(alias, entry, entry.with_canary(bundle.digest, share, Signature.now()))
        return bundle

    def end_canary(self, alias: str) -> None:
        """Let the stable bundle answer all requests of ``alias``; without a canary it does.

        Raises:
            ValueError: no such alias.
        """
        self.traffic(alias)
        with self.locked():
            entry = self.traffic(alias)
            self._put(alias, entry, entry.without_canary(Signature.now()))

    def shadow(self, alias: str, ref: str) -> Bundle:
        """Let the bundle ``ref`` be asked what ``alias`` is asked; nobody gets its answers.

        Its bounds need not hold: nobody depends on it, and to see live figures of a bundle that
        cannot be promoted yet is what a shadow is for.

        Raises:
            ValueError: no such alias or bundle, a damaged one, or it answers already.
        """
        self.traffic(alias)
        bundle = self._vouched(ref)
        with self.locked():
            entry = self.traffic(alias)
            self._put(alias, entry, entry.with_shadow(bundle.digest, Signature.now()))
        return bundle

    def end_shadow(self, alias: str) -> None:
        """Ask nobody beside those who answer ``alias``.

        Raises:
            ValueError: no such alias.
        """
        self.traffic(alias)
        with self.locked():
            entry = self.traffic(alias)
            self._put(alias, entry, entry.without_shadow(Signature.now()))

    def _vouched(self, ref: str) -> Bundle:
        """A bundle that is signed, where the store asks for that.

        Raises:
            ValueError: no such bundle, a damaged one, or no trusted key signed it.
        """
        bundle = self.open(ref)
        if self.trust is not None:
            self.trust.check(bundle, self.signatures(bundle.digest))
        return bundle

    def _held(self, bundle: Bundle, what: str) -> Bundle:
        """A bundle whose bounds hold.

        Raises:
            ValueError: one does not; each is named.
        """
        broken = self.broken_bounds(bundle)
        if broken:
            raise ValueError(f"bundle {bundle.digest[:12]} is not {what}: " + "; ".join(broken))
        return bundle

    def broken_bounds(self, bundle: Bundle) -> tuple[str, ...]:
        """Each bound that does not hold, or whose figure is nowhere, in words."""
        latest = {metric.name: metric for metric in self.measurements(bundle.digest)}
        broken: list[str] = []
        for name, (at_least, at_most) in sorted(bundle.manifest.bounds.items()):
            values = [latest[name].value] if name in latest else []
            if name in bundle.manifest.metrics:
                values.append(bundle.manifest.metrics[name])
            figures = [
                Metric(name=name, value=value, at_least=at_least, at_most=at_most)
                for value in values
            ]
            broken.extend(str(figure) for figure in figures if not figure.holds)
            if not figures:
                broken.append(f"{name} was not measured")
        broken.extend(
            str(metric)
            for name, metric in sorted(latest.items())
            if name not in bundle.manifest.bounds and not metric.holds
        )
        return tuple(broken)

    def _alias(self, name: str) -> Alias | None:
        path = self.room("aliases") / f"{name}.json"
        text = read(path)
        if text is None:
            return None
        try:
            return Alias.from_json(text)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}.") from None

    def _put(self, alias: str, before: Alias | None, now: Alias) -> None:
        if now != before:
            durable.write(self.room("aliases") / f"{alias}.json", now.to_json())

    # -- signatures ----------------------------------------------------------------------------

    def sign(self, ref: str, key: Path | str) -> Path:
        """Sign a bundle; signatures by other keys stay.

        Args:
            ref: the bundle.
            key: the file of a private key (see :func:`drivetrain.registry.signature.sign`).

        Returns:
            The signature's file.

        Raises:
            ValueError: no such bundle, a damaged one, or a key that others can read or that does
                not sign.
            OSError: the key cannot be read; no space, no permission.
        """
        bundle = self.open(ref)
        signature, fingerprint = sign(bundle, key)
        path = self.room("signatures") / f"{bundle.digest}.{fingerprint[:16]}{SUFFIX}"
        with self.writing():
            durable.write(path, signature)
        return path

    def signatures(self, ref: str) -> tuple[bytes, ...]:
        """The files of all signatures of a bundle; whose they are is for :meth:`verify` to say.

        Raises:
            ValueError: no such bundle.
        """
        paths = sorted(self.room("signatures").glob(f"{self.resolve(ref)}.*{SUFFIX}"))
        return tuple(text for text in map(read, paths) if text is not None)

    def verify(self, ref: str, public_key: Path | str) -> PublicKey:
        """See that a bundle is signed.

        Args:
            ref: the bundle.
            public_key: the file of one or several public keys in PEM, any of which may have.

        Returns:
            The key that has signed it.

        Raises:
            ValueError: no such bundle, a damaged one, or none of the keys has; says what was
                found.
            OSError: the keys cannot be read.
        """
        return Trust.load(public_key).check(self.open(ref), self.signatures(ref))

    # -- what was measured ---------------------------------------------------------------------

    def record(self, ref: str, metrics: Sequence[Metric]) -> None:
        """Keep measurements beside a bundle, all of them or none.

        Raises:
            ValueError: no such bundle.
            OSError: no space, no permission; the store is then as it was.
        """
        digest = self.resolve(ref)
        if digest not in self.bundles():
            raise unknown("bundle", ref, (d[:12] for d in self.bundles()), str(self.root))
        path = self.room("measured") / f"{digest}.jsonl"
        lines = "".join(json.dumps(asdict(metric)) + "\n" for metric in metrics)
        with self.locked():
            durable.write(path, (read(path) or b"") + lines.encode())

    def measurements(self, ref: str) -> tuple[Metric, ...]:
        """All that was recorded of a bundle, the oldest first.

        Raises:
            ValueError: no such bundle, or its measurements are damaged.
        """
        path = self.room("measured") / f"{self.resolve(ref)}.jsonl"
        text = read(path) or b""
        try:
            return tuple(Metric(**json.loads(line)) for line in text.splitlines())
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None


def _check_alias(name: str) -> None:
    if not ALIAS.fullmatch(name) or ".." in name or PREFIX.fullmatch(name):
        raise wrong(
            "alias",
            name,
            "a-z, 0-9, dot, dash and underscore, 64 at most, a letter or digit first, no two "
            "dots together, and not to be taken for a digest",
        )
