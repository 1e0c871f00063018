"""`/v1/pictures`: files in, the frames that the model would see of them out, with what was decided about them. The model does not run."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.client import picture_list
from echovlm_edge.runtime.contracts.errors import Stopped
from echovlm_edge.runtime.contracts.request import Frame, pictures
from echovlm_edge.runtime.serving import messages
from echovlm_edge.runtime.serving.http.exchange.exchange import Exchange, as_json
from echovlm_edge.runtime.serving.http.exchange.http_calls import HttpCalls
from echovlm_edge.runtime.serving.http.form_data.received_form import ReceivedForm, received_form
from echovlm_edge.runtime.serving.http.form_data.report_fields import checked_fields
from echovlm_edge.runtime.serving.service import ShownFrame

METHOD = "ShowPictures"
MOST_SIDE = 640  # pixels of a picture's longer side: larger ones are sent smaller, so that an answer is bounded
QUALITY = 88  # of JPEG


class PictureFields(BaseModel):
    """The fields beside the files, as those of a report."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    frames: int = Field(0, ge=0, le=2**32 - 1)
    keep_whole_frame: bool = False
    image_tokens: int = Field(0, ge=0, le=2**32 - 1)
    allow_mixed_studies: bool = False


class Pictures:
    """Shows pictures. A request counts as a call, its files are limited as uploads are, and nothing of it is kept."""

    def __init__(self, calls: HttpCalls) -> None:
        """Read images by the service of `calls`."""
        self._calls = calls

    async def show(self, exchange: Exchange) -> None:
        """Answer `POST /v1/pictures`."""
        async with (
            self._calls.call(METHOD, exchange) as call,
            received_form(self._calls, exchange, call) as form,
        ):
            fields = checked_fields(PictureFields, form.texts)
            asked = _images(form, fields)
            async with exchange.watched([call.gone]):
                try:
                    answer = await self._calls.in_thread(
                        lambda: _answer(
                            self._calls.service.show_pictures(
                                asked, fields.image_tokens, fields.allow_mixed_studies, call
                            ),
                            call.id,
                        )
                    )
                except Stopped:  # nobody is there
                    return
            await exchange.answer(answer)


def _images(form: ReceivedForm, fields: PictureFields) -> list[pb.Image]:
    return [
        pb.Image(
            upload=name,
            media_type=file.media_type,
            frames=pb.FrameSelection(evenly_spaced=fields.frames) if fields.frames else None,
            keep_whole_frame=fields.keep_whole_frame,
        )
        for name, file in zip(form.uploads, form.files, strict=True)
    ]


def _answer(shown: Sequence[ShownFrame], request_id: str) -> bytes:
    described = [messages.picture(picture) for picture in pictures([one.frame for one in shown])]
    return as_json(
        {
            "pictures": [
                {
                    "image": one.frame.image,
                    **told,
                    "unlike_ultrasound": one.frame.unlike_ultrasound,
                    "seen": _jpeg(one.frame),
                    "whole": _jpeg(one.whole) if one.whole else None,
                }
                for one, told in zip(shown, picture_list.as_json(described, ()), strict=True)
            ],
            "tokens": sum(picture.tokens for picture in described),
            "request_id": request_id,
        }
    )


def _jpeg(frame: Frame) -> dict[str, Any]:
    """Encode a frame, as a data URI with its size in pixels."""
    picture = Image.fromarray(frame.pixels)
    picture.thumbnail((MOST_SIDE, MOST_SIDE), Image.Resampling.LANCZOS)
    encoded = BytesIO()
    picture.save(encoded, "JPEG", quality=QUALITY)
    return {
        "url": f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}",
        "width": picture.width,
        "height": picture.height,
    }
