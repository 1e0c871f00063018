"""Steps `doctor` and `bundle`: the machine fits, and every file is the one that was built and signed."""

from __future__ import annotations

from dataclasses import asdict

from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.doctor.acceptance.schema import Check, Outcome, State
from echovlm_edge.runtime.doctor.acceptance.setting import Setting
from echovlm_edge.runtime.doctor.checks import Finding, Level, findings, fits
from echovlm_edge.runtime.doctor.facts import facts
from echovlm_edge.runtime.serving.supervision.serve_settings import ServeSettings


def doctor(setting: Setting) -> Outcome:
    """Examine the machine as echovlm-doctor does; what makes it slower is a remark."""
    machine = facts()
    settings = ServeSettings(bundle=setting.bundle.path, slots=setting.slots)
    found = [*findings(machine), fits(setting.bundle.path, machine, settings)]
    return Outcome(tuple(map(_check, found)), facts=asdict(machine))


def _check(finding: Finding) -> Check:
    state = State.FAILED if finding.level is Level.WRONG else State.PASSED
    return Check(finding.what, state, finding.fix)


def bundle(setting: Setting) -> Outcome:
    """Hash every file, and check the signature where a key is given."""
    opened = Bundle(setting.bundle.path, verify=True, signers=setting.signers)
    files = opened.manifest.all_files()
    size = sum(file.bytes for file in files) / 1e9
    checks = [Check(f"{len(files)} files, {size:.2f} GB, have the hashes that bundle.json states", State.PASSED)]
    if setting.signers:
        checks.append(Check("bundle.json is signed by a key that is accepted", State.PASSED))
    else:
        checks.append(Check("The signature of bundle.json", State.SKIPPED, "No key was given: --require-signature."))
    return Outcome(tuple(checks))
