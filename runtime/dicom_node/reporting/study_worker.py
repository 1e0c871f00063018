"""Bring one study forward at the server: open it, add its pictures as they come, ask for its report when it is complete."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from echovlm_edge.runtime.client.report import Report
from echovlm_edge.runtime.client.report_client import ReportClient
from echovlm_edge.runtime.contracts.errors import (
    DeadlineExceeded,
    NotFound,
    NotPossibleHere,
    ServerBusy,
    ServerUnavailable,
    Unauthenticated,
    UserError,
)
from echovlm_edge.runtime.contracts.request import Priority, Sampling
from echovlm_edge.runtime.contracts.tasks import Language
from echovlm_edge.runtime.dicom_node.receiving.header import from_json
from echovlm_edge.runtime.dicom_node.reporting.documents import Chosen, DocumentMaker
from echovlm_edge.runtime.dicom_node.reporting.open_studies import AtServer, OpenStudies
from echovlm_edge.runtime.dicom_node.reporting.questions import Question, Row, ask, facts_of
from echovlm_edge.runtime.dicom_node.reporting.selection import (
    Outcome,
    SelectionLimits,
    ShownStill,
    Verdict,
    choose_cines,
    cine_of,
    frames_of,
    judge_still,
    strangers,
)
from echovlm_edge.runtime.dicom_node.spool.rows import Instance
from echovlm_edge.runtime.dicom_node.spool.rows import Study as StudyRow
from echovlm_edge.runtime.dicom_node.spool.spool import Spool

# Of a call that only tells that the server is not there now; what else fails is about the study.
PASSING = (ServerBusy, ServerUnavailable, DeadlineExceeded, Unauthenticated, NotFound)
NO_PICTURE = "The study has no picture that the model can be shown."
MOST_TRIES = 5  # until a fault is believed to last; a server that is killed can say that something is not possible, too
PROMPT_TOKENS = 256  # of the context that are kept for the words of the prompt

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportOptions:
    """How reports are asked for.

    Attributes:
        pictures, frames_per_cine, near_duplicate_bits: see `SelectionLimits`.
        rows: of the table of questions.
        language: where no row gives one.
        max_new_tokens: of a report.
        priority: of the calls.
        open_studies: that may be open at the server at once.
        call_seconds: for a call to the server.
        destinations: who gets which document: a kind and the destination's name.
        image_tokens: most visual tokens of a frame; None for the server's bound.
    """

    pictures: int = 16
    frames_per_cine: int = 4
    near_duplicate_bits: int = 8
    rows: tuple[Row, ...] = ()
    language: Language = Language.EN
    max_new_tokens: int = 512
    priority: Priority = Priority.INTERACTIVE
    open_studies: int = 16
    call_seconds: float = 1800.0
    destinations: tuple[tuple[str, str], ...] = ()
    image_tokens: int | None = None


class StudyWorker:
    """Works on studies, one call for each at a time; several threads may work on different ones.

    What the server holds is only a copy: if it has forgotten a study, the study is begun again from the spool, with the pictures that
    were chosen.
    """

    def __init__(self, spool: Spool, client: ReportClient, options: ReportOptions, documents: DocumentMaker) -> None:
        """Work on the studies of a spool with a server."""
        self._spool, self._client, self._options, self._documents = spool, client, options, documents
        self.open_studies = OpenStudies(client, options.open_studies, options.call_seconds, options.image_tokens)
        self._tries: dict[int, int] = {}
        self._limits: SelectionLimits | None = None

    def add_stills(self, study: StudyRow) -> None:
        """Add the stills that have come; raises as `report`."""
        self._again_if_forgotten(study, lambda: self._decide_stills(study))

    def add_cines(self, study: StudyRow) -> None:
        """Add the cines too, so that they are read before the study is complete; raises as `report`."""
        self._again_if_forgotten(study, lambda: self._decide(study))

    def report(self, study: StudyRow) -> None:
        """Ask for the report about a complete study, and store its documents.

        Raises:
            ServerBusy, ServerUnavailable, DeadlineExceeded, Unauthenticated, NotFound: to be tried again later.
        """
        try:
            self._again_if_forgotten(study, lambda: self._report(study))
        except UserError as error:
            self._raise_if_passing(study, error)
            self._fail(study, str(error))
        except (OSError, sqlite3.Error):  # the disk is full or fails
            raise
        except Exception as error:  # attributes that no document can be made of, for example
            if not self._is_believed(study):
                raise
            self._fail(study, f"Its documents cannot be made ({type(error).__name__}): see the log.")
        self._tries.pop(study.id, None)
        self.open_studies.end(self.open_studies.give_up(study.id))

    def _raise_if_passing(self, study: StudyRow, error: UserError) -> None:
        """Raise an error that says nothing about the study: the server is not there, or failed in a way that may not last."""
        if isinstance(error, PASSING):
            raise error
        if isinstance(error, NotPossibleHere) and not self._is_believed(study):
            raise error

    def _is_believed(self, study: StudyRow) -> bool:
        """Count a fault that may not last; tells whether it has come so often that it will."""
        self._tries[study.id] = self._tries.get(study.id, 0) + 1
        return self._tries[study.id] >= MOST_TRIES

    def _again_if_forgotten(self, study: StudyRow, work: Callable[[], object]) -> None:
        try:
            work()
        except NotFound:
            self.open_studies.give_up(study.id)
            work()

    def _report(self, study: StudyRow) -> None:
        self._decide(study)
        instances = self._spool.studies.instances_of(study)
        shown = [instance for instance in instances if _is_shown(instance)]
        if not shown:
            reasons = {str(one.choice.get("reason")) for one in instances if one.choice and one.choice.get("reason")}
            self._fail(study, " ".join([NO_PICTURE, *sorted(reasons)]))
            return
        question = self.question(instances)
        opened = self._opened(study)
        report: Report = opened.study.write(
            question.task,
            prompt=question.prompt,
            language=question.language,
            region=question.region,
            sampling=Sampling(max_new_tokens=self._options.max_new_tokens),
            priority=self._options.priority,
            include_token_ids=True,
            timeout=self._options.call_seconds,
        )
        stills = [one for one in shown if one.kind == "still"]
        in_order = [*stills, *(one for one in shown if one.kind == "cine")]
        chosen = Chosen(tuple(instances), tuple(in_order), question)
        documents = self._documents.make(study, report, chosen, self._spool.deliveries.predecessor(study))
        places = {document.kind: place for place, document in enumerate(documents)}
        owed = [(places[kind], destination) for kind, destination in self._options.destinations]
        if self._spool.deliveries.report(study, documents, owed):
            _log.info("a report was written", extra={"study": study.id, "version": study.version})

    def question(self, instances: list[Instance]) -> Question:
        """Choose what is asked about a study."""
        headers = [from_json(instance.header) for instance in instances]
        facts = facts_of(headers, {instance.ae_title for instance in instances})
        return ask(facts, self._options.rows, self._options.language)

    def _fail(self, study: StudyRow, reason: str) -> None:
        if self._spool.studies.fail(study, reason):
            _log.warning("no report can be written: %s", reason, extra={"study": study.id, "version": study.version})

    def limits(self) -> SelectionLimits:
        """Return the limits of a report, of which the server's context is one; it is asked once."""
        if self._limits is None:
            context = self._client.connection.model_info(self._options.call_seconds).limits.max_sequence
            tokens = context - PROMPT_TOKENS - self._options.max_new_tokens
            if tokens <= 0:
                raise NotPossibleHere(
                    f"The server's context of {context} tokens has no room for pictures beside a report of "
                    f"{self._options.max_new_tokens}: lower --max-new-tokens."
                )
            options = self._options
            self._limits = SelectionLimits(
                options.pictures, tokens, options.frames_per_cine, options.near_duplicate_bits
            )
        return self._limits

    def _opened(self, study: StudyRow) -> AtServer:
        """Return the study at the server with the stills that are shown; it is begun where it is not open."""
        studies = self._spool.studies
        return self.open_studies.opened(study, lambda: studies.instances_of(study, ("still",), choice=Outcome.SHOWN))

    def _decide(self, study: StudyRow) -> None:
        self._decide_stills(study)
        self._decide_cines(study)

    def _without_strangers(self, study: StudyRow, instances: list[Instance]) -> list[Instance]:
        """Leave out the instances of another patient than the study's first, and note it."""
        found = strangers(self._spool.studies.patients(study)) if instances else frozenset()
        new = [one.id for one in instances if one.id in found and one.choice is None]
        if new:
            self._spool.studies.choose({id: {"outcome": Outcome.OTHER_PATIENT} for id in new})
            _log.warning(
                "%d images state another patient than their study's first", len(new), extra={"study": study.id}
            )
        return [one for one in instances if one.id not in found]

    def _decide_stills(self, study: StudyRow) -> None:
        undecided = self._without_strangers(study, self._spool.studies.instances_of(study, ("still",), choice=""))
        if not undecided:
            return
        limits = self.limits()
        shown = [_shown(one) for one in self._spool.studies.instances_of(study, ("still",), choice=Outcome.SHOWN)]
        opened = self._opened(study)
        self._withdraw_cines(opened)
        for number, instance in enumerate(undecided):
            if len(shown) >= limits.pictures:
                rest = {one.id: {"outcome": Outcome.NO_ROOM} for one in undecided[number:]}
                self._spool.studies.choose(rest)
                return
            try:
                added = self.open_studies.add(opened, instance)
            except UserError as error:
                self._raise_if_passing(study, error)
                self._spool.studies.choose({instance.id: {"outcome": Outcome.REFUSED, "reason": str(error)}})
                continue
            picture = added.pictures[0] if added.pictures else None
            fingerprint = picture.fingerprint if picture else b""
            verdict: Verdict = judge_still(fingerprint, added.study_tokens, shown, limits)
            choice = {"outcome": verdict.outcome, "like": verdict.like, "fingerprint": fingerprint.hex()}
            if verdict.outcome is Outcome.SHOWN:
                opened.stills[instance.id] = added.number
                shown.append(ShownStill(instance.id, fingerprint))
            else:
                self.open_studies.withdraw(opened, added.number)
            self._spool.studies.choose({instance.id: choice})

    def _decide_cines(self, study: StudyRow) -> None:
        cines = self._without_strangers(study, self._spool.studies.instances_of(study, ("cine",)))
        if not cines:
            return
        limits = self.limits()
        opened = self._opened(study)
        stills = len(opened.stills)
        wanted = choose_cines(
            [cine_of(from_json(one.header), one.sop_class) for one in cines], limits.pictures - stills, limits
        )
        plan = {one.id: count for one, count in zip(cines, wanted, strict=True)}
        decided = {one.id for one in cines if one.choice is not None}
        if decided == plan.keys() and all(
            opened.cines.get(one.id, (0, 0))[1] == one.choice["frames"] for one in cines if one.choice
        ):
            return
        self._withdraw_cines(opened)
        for instance in cines:
            self._spool.studies.choose(
                {instance.id: self._decide_cine(study, opened, instance, plan[instance.id], limits)}
            )

    def _decide_cine(
        self, study: StudyRow, opened: AtServer, instance: Instance, count: int, limits: SelectionLimits
    ) -> dict[str, object]:
        """Add a cine with as many of its frames as the context holds; returns the choice."""
        while count:
            try:
                added = self.open_studies.add(opened, instance, frames_of(count))
            except UserError as error:
                self._raise_if_passing(study, error)
                return {"outcome": Outcome.REFUSED, "reason": str(error), "frames": 0}
            if added.study_tokens <= limits.tokens:
                opened.cines[instance.id] = added.number, count
                return {"outcome": Outcome.SHOWN, "frames": count}
            self.open_studies.withdraw(opened, added.number)
            count -= 1
        return {"outcome": Outcome.NO_ROOM, "frames": 0}

    def _withdraw_cines(self, opened: AtServer) -> None:
        """Remove the cines, which follow all stills; what else is there stays read."""
        for instance, (number, _) in list(opened.cines.items()):
            self.open_studies.withdraw(opened, number)
            del opened.cines[instance]
            self._spool.studies.choose({instance: None})


def _is_shown(instance: Instance) -> bool:
    return bool(instance.choice and instance.choice["outcome"] == Outcome.SHOWN)


def _shown(instance: Instance) -> ShownStill:
    assert instance.choice
    return ShownStill(instance.id, bytes.fromhex(str(instance.choice.get("fingerprint", ""))))
