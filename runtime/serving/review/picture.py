"""Pictures that hardly are ultrasound."""

from __future__ import annotations

from echovlm_edge.runtime.serving.review.reviewed import Reviewed


def is_about_other_pictures(reviewed: Reviewed) -> str | None:
    """Name the images that have a picture which hardly is ultrasound, as the result numbers them."""
    unlike = [picture for picture in reviewed.pictures if picture.unlike_ultrasound]
    if not unlike:
        return None
    english = dict.fromkeys(f"{'study image' if one.of_study else 'image'} {one.image}" for one in unlike)
    chinese = dict.fromkeys(f"{'检查图像' if one.of_study else '图像'}{one.image}" for one in unlike)
    return reviewed.say(f"Hardly an ultrasound picture: {', '.join(english)}.", f"{'、'.join(chinese)}不像超声图像。")
