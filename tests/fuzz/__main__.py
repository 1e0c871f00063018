"""`make fuzz`: coverage-guided fuzzing of one target by atheris; ends with a crash file and an exit code above 0 where it finds something.

python -m tests.fuzz png [--cases 20000] [--keep]

What it finds worth keeping (it reaches code that nothing before did) goes to build/fuzz; --keep takes the smallest of it into
tests/fuzz/corpus, which every run begins from and the ordinary tests replay. What made the server fail belongs there too.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

CORPUS, BUILD = Path(__file__).parent / "corpus", Path("build/fuzz")
SECONDS, MEGABYTES, LONGEST = 20, 4096, 1 << 16  # for one case; for the process; bytes of a case
KEPT_BYTES = 1 << 16  # of a target


def main() -> int:
    """Run one target in a process of its own, since libFuzzer ends its process."""
    parser = argparse.ArgumentParser(description="Fuzz one kind of input.")
    parser.add_argument("target")
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--keep", action="store_true", help="take what was found worth keeping into the corpus")
    options = parser.parse_args()
    found, kept = BUILD / options.target, CORPUS / options.target
    for folder in (found, kept):
        folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    child = [sys.executable, "-m", "tests.fuzz", "--child", options.target]
    limits = [f"-timeout={SECONDS}", f"-rss_limit_mb={MEGABYTES}", f"-max_len={LONGEST}", f"-artifact_prefix={BUILD}/"]
    done = subprocess.run([*child, *limits, f"-runs={options.cases}", found, kept], check=False)
    verdict = "nothing found" if done.returncode == 0 else f"a finding: see {BUILD}"
    print(f"{options.target}: {options.cases:,} cases in {time.monotonic() - started:.0f} s, {verdict}", flush=True)
    if options.keep:
        keep(found, kept)
    return int(done.returncode != 0)


def keep(found: Path, kept: Path) -> None:
    """Copy the smallest files, as many as there is room for."""
    room = KEPT_BYTES - sum(file.stat().st_size for file in kept.iterdir())
    for file in sorted(found.iterdir(), key=lambda file: (file.stat().st_size, file.name)):
        room -= file.stat().st_size
        if room < 0:
            return
        shutil.copy(file, kept)


def child(name: str, arguments: list[str]) -> None:
    """Hand the target over to libFuzzer, which does not return."""
    import atheris

    with atheris.instrument_imports(include=["echovlm_edge", "pydicom", "PIL", "pylibjpeg"]):
        from tests.fuzz.targets import TARGETS

    warnings.simplefilter("ignore")  # pydicom's, about each wrong value
    target = TARGETS[name]
    seeds = BUILD / f"{name}-seeds"
    seeds.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (seeds / str(number)).write_bytes(seed)

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        mutated = atheris.Mutate(data, longest)
        return mutated if random.Random(seed).random() < 0.1 else target.repair(mutated)

    atheris.Setup([sys.argv[0], *arguments, str(seeds)], target.run, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3:])
    sys.exit(main())
