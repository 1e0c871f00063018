"""The words for a request's options that all paths share."""

from __future__ import annotations

from echovlm.v1 import report_pb2 as pb

LANGUAGES = {"en": pb.LANGUAGE_EN, "zh": pb.LANGUAGE_ZH}
PRIORITIES = {"interactive": pb.PRIORITY_INTERACTIVE, "batch": pb.PRIORITY_BATCH}
