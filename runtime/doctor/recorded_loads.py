"""What the server recorded about loading a bundle: that it was refused, or ended the server's process."""

from __future__ import annotations

from pathlib import Path

from echovlm_edge.runtime.bundle.installed import PREVIOUS, linked
from echovlm_edge.runtime.bundle.loads import MOST_CRASHES, Loads
from echovlm_edge.runtime.bundle.manifest import CURRENT, bundle_at
from echovlm_edge.runtime.contracts.printable import printable
from echovlm_edge.runtime.doctor.checks import Finding, Level

FIX = (
    "Install a good bundle (echovlm-bundle install), the same one again to try it again, or return to the previous one "
    "(echovlm-bundle rollback)."
)


def recorded_loads(path: Path) -> list[Finding]:
    """List what is recorded against the bundle at `path`, a bundle or a folder of bundles; not against one that no link leads to."""
    bundle = bundle_at(path).resolve()
    linked_to = [linked(bundle.parent, link) for link in (CURRENT, PREVIOUS)]
    if any(linked_to) and bundle not in linked_to:
        return []
    loads, name = Loads(bundle.parent), printable(bundle.name)
    if reason := loads.refusal(bundle.name):
        return [Finding(Level.WRONG, f"The server has refused {name}: {reason}", FIX)]
    if crashes := loads.crashes(bundle.name):
        level = Level.WRONG if crashes >= MOST_CRASHES else Level.SLOW
        times = "once" if crashes == 1 else f"{crashes} times"
        return [
            Finding(level, f"Loading {name} has ended the server's process {times}; journalctl -k may say why.", FIX)
        ]
    return []
