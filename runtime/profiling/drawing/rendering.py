"""Render a page of one file that works without a network: a template, its data and the plotting library."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader

from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.extras import install_hint

HERE = "echovlm_edge.runtime.profiling.drawing"  # its page.css and page_parts.js are shared


def plotting_library(otherwise: str) -> str:
    """Return the plotting library's JavaScript.

    Args:
        otherwise: what a user can do without it, as the end of a sentence.

    Raises:
        NotPossibleHere: it is not installed.
    """
    try:
        import vl_convert
    except ImportError:
        raise NotPossibleHere(
            f"The page needs a plotting library that is not installed: {install_hint('page')}, or {otherwise}."
        ) from None
    return str(vl_convert.javascript_bundle())  # type: ignore[call-arg] # its types leave the default out


def render(template: str, title: str, library: str, data: Mapping[str, Any], packages: Sequence[str] = ()) -> str:
    """Render a page.

    Args:
        template: its name, in this package or in one of `packages`, which are searched first.
        title: of the page.
        library: see `plotting_library`.
        data: what the page's script draws, plain values.
        packages: with further templates, style sheets and scripts.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, ".") for package in (*packages, HERE)]),
        autoescape=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(
        title=title,
        # Nothing inside a script element may read as its end.
        library=library.replace("</script", "<\\/script"),
        data=json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),
    )
