"""Bring one study forward at the server: open it, add its pictures as they come, ask for its report when it is complete."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from echovlm_edge.runtime.client.report import AddedImage, Report
from echovlm_edge.runtime.client.report_client import END_SECONDS, ReportClient, Study
from echovlm_edge.runtime.contracts.errors import (
    DeadlineExceeded,
    NotFound,
    NotOffered,
    NotPossibleHere,
    ServerBusy,
    ServerUnavailable,
    Unauthenticated,
    UserError,
)
from echovlm_edge.runtime.contracts.image_path import ImagePath
from echovlm_edge.runtime.contracts.request import FrameSelection, Priority, Sampling
from echovlm_edge.runtime.contracts.tasks import Language
from echovlm_edge.runtime.dicom_node.receiving.header import from_json
from echovlm_edge.runtime.dicom_node.reporting.documents import Chosen, DocumentMaker
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
    keeps_whole_frame,
    strangers,
)
from echovlm_edge.runtime.dicom_node.spool.rows import Instance
from echovlm_edge.runtime.dicom_node.spool.rows import Study as StudyRow
from echovlm_edge.runtime.dicom_node.spool.spool import Spool
from echovlm_edge.runtime.formats.media_types import DICOM

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


@dataclass
class AtServer:
    """A study that is open at the server: what was added of it, in order."""

    study: Study
    version: int
    stills: dict[int, int] = field(default_factory=dict)  # the image's number there, by the instance
    cines: dict[int, tuple[int, int]] = field(default_factory=dict)  # likewise, and how many frames


class StudyWorker:
    """Works on studies, one call for each at a time; several threads may work on different ones.

    What the server holds is only a copy: if it has forgotten a study, the study is begun again from the spool, with the pictures that
    were chosen.
    """

    def __init__(self, spool: Spool, client: ReportClient, options: ReportOptions, documents: DocumentMaker) -> None:
        """Work on the studies of a spool with a server."""
        self._spool, self._client, self._options, self._documents = spool, client, options, documents
        self._open: dict[int, AtServer] = {}
        self._tries: dict[int, int] = {}
        self._limits: SelectionLimits | None = None
        self._places = options.open_studies

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
        self.end(self.give_up(study.id))

    @property
    def open_studies(self) -> frozenset[int]:
        """The ids of the studies that are open at the server, as far as the node knows."""
        return frozenset(self._open)

    @property
    def places(self) -> int:
        """How many studies may be open at once: those of the options, and at most half of what the server lets this client open."""
        return min(self._options.open_studies, self._places)

    def give_up(self, study: int) -> AtServer | None:
        """Give up a study's place, as the study is to be begun again later; `end` tells the server."""
        return self._open.pop(study, None)

    def end(self, opened: AtServer | None) -> None:
        """End a study at the server, if there is one; without an answer it expires there."""
        if opened:
            with suppress(UserError):
                self._client.end_study(opened.study.id, END_SECONDS)

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
            self._open.pop(study.id, None)
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
        report: Report = opened.study.report(
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
        """Return the limits of a report, of which the server's context is one; it is asked once, as is the number of its studies."""
        if self._limits is None:
            connection = self._client.connection
            with suppress(NotOffered):  # a department's, or an older one
                self._places = max(1, connection.list_studies(self._options.call_seconds).max_studies // 2)
            context = connection.model_info(self._options.call_seconds).limits.max_sequence
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
        opened = self._open.get(study.id)
        if opened and opened.version == study.version:
            return opened
        self.end(self.give_up(study.id))
        connection = self._client.connection
        opened = AtServer(Study(connection, connection.begin_study(self._options.call_seconds)), study.version)
        self._open[study.id] = opened
        for instance in self._spool.studies.instances_of(study, ("still",), choice=Outcome.SHOWN):
            opened.stills[instance.id] = self._add(opened, instance).number
        return opened

    def _add(self, opened: AtServer, instance: Instance, selection: FrameSelection | None = None) -> AddedImage:
        whole_frame = keeps_whole_frame(from_json(instance.header))
        name = f"instance {instance.id}"
        path = ImagePath(instance.path, DICOM, name, selection or FrameSelection(), not whole_frame)
        return opened.study.add(path, timeout=self._options.call_seconds)

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
                added = self._add(opened, instance)
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
                opened.study.withdraw(added.number, self._options.call_seconds)
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
                added = self._add(opened, instance, frames_of(count))
            except UserError as error:
                self._raise_if_passing(study, error)
                return {"outcome": Outcome.REFUSED, "reason": str(error), "frames": 0}
            if added.study_tokens <= limits.tokens:
                opened.cines[instance.id] = added.number, count
                return {"outcome": Outcome.SHOWN, "frames": count}
            opened.study.withdraw(added.number, self._options.call_seconds)
            count -= 1
        return {"outcome": Outcome.NO_ROOM, "frames": 0}

    def _withdraw_cines(self, opened: AtServer) -> None:
        """Remove the cines, which follow all stills; what else is there stays read."""
        for instance, (number, _) in list(opened.cines.items()):
            opened.study.withdraw(number, self._options.call_seconds)
            del opened.cines[instance]
            self._spool.studies.choose({instance: None})


def _is_shown(instance: Instance) -> bool:
    return bool(instance.choice and instance.choice["outcome"] == Outcome.SHOWN)


def _shown(instance: Instance) -> ShownStill:
    assert instance.choice
    return ShownStill(instance.id, bytes.fromhex(str(instance.choice.get("fingerprint", ""))))
