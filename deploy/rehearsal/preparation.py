"""Prepare a rehearsal: the root, and in it what somebody carries to the target on a stick."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from deploy import wheelhouse
from deploy.closure import needed
from deploy.rehearsal.empty_root import make_root
from deploy.rehearsal.namespace import FOLDER
from deploy.rehearsal.running import say
from echovlm_edge.runtime.contracts.errors import NotPossibleHere


@dataclass(frozen=True)
class Rehearsal:
    """What is rehearsed.

    Attributes:
        dist: the folder of a release.
        bundle: the demo's, built.
        processor: of the wheel.
        suite: of Debian.
        extras: to collect and to install.
        public_key: that has signed the release; none for one without a signature.
        place: of this computer where the namespace's root is made.
    """

    dist: Path
    bundle: Path
    processor: str
    suite: str
    extras: tuple[str, ...]
    public_key: Path | None
    place: Path

    @property
    def root(self) -> Path:
        """The namespace's root."""
        return self.place / "root"

    def prepare(self) -> None:
        """Make the root, and put into it what somebody carries to the target on a stick.

        Raises:
            NotPossibleHere: a tool or the network fails, or the release has no wheel for the processor.
        """
        wheels = sorted(self.dist.glob(f"echovlm_edge-*_{self.processor}.whl"))
        if len(wheels) != 1 or not (self.bundle / "bundle.json").is_file():
            raise NotPossibleHere(
                f"{self.dist} has {len(wheels)} wheels for {self.processor} where one is needed (make release), "
                f"or {self.bundle} is no bundle (echovlm-build --checkpoint demo/checkpoint --output bundles/demo)."
            )
        began = time.perf_counter()
        version = make_root(self.root, self.suite, self.processor, ("minisign",) if self.public_key else ())
        say(f"a root of {self.suite} with Python {version}", began)
        inside = self.root / FOLDER.strip("/")
        shutil.copytree(self.dist, inside / "dist")
        shutil.copytree(self.bundle, inside / "bundles" / "demo")
        if self.public_key:
            shutil.copy(self.public_key, inside / "vendor.pub")
        began = time.perf_counter()
        found = wheelhouse.collect(wheels[0], self.extras, version, inside / "wheelhouse")
        size = sum(wheel.stat().st_size for wheel in found) / 1e6
        say(f"a wheelhouse of {len(found)} wheels, {size:.0f} MB", began)
        (inside / "locks").mkdir()
        target = wheelhouse.target_of(wheels[0], version)
        for extra in self.extras:
            own, _ = needed(found, wheelhouse.PACKAGE, (extra,), target)
            (inside / "locks" / f"{extra}.lock").write_text(wheelhouse.lock(own), encoding="utf-8")
