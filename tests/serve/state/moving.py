"""An alias that a test moves, a server that follows it, and its end."""

from waiting import wait_until

from drivetrain.serve.execution.models import Artefact, Traffic


class Alias:
    """An alias that a test moves: ``Alias("cards", stable=bundle, canary=other, share=0.5)``."""

    def __init__(self, name, **traffic):
        self.name = name
        self.traffic = self.of(**traffic)

    @staticmethod
    def of(share=0.0, **bundles):
        found = {role: Artefact(b.digest, b.path) for role, b in bundles.items()}
        return Traffic(share=share, **found)

    def move(self, client, **traffic):
        """Let it mean something else, and wait until the server serves that."""
        self.traffic = self.of(**traffic)
        digests = {artefact.digest[:12] for artefact in self.traffic.artefacts}
        asked = f"/v2/models/{self.name}"
        wait_until(lambda: set(client.get(asked).json["versions"]) == digests, 60.0)

    def __call__(self):
        return self.traffic


def follow(serve, alias, **options):
    """A server of an alias, which asks often what it means."""
    return serve(models={alias.name: alias}, reload_seconds=0.05, **options)


def ended(client):
    """Stop a server, and wait until nobody answers where it was."""
    client.server.stop()

    def refused():
        try:
            client.get("/v2/health/live")
        except OSError:
            return True
        return False

    wait_until(refused, 60.0)
