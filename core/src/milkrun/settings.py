"""
Where the client's configuration comes from: argument, then `MILKRUN_*` environment, then default.

Read once, when a client is made; frozen from then on.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx

from milkrun.local import default_data_dir


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a client finds its engine; the key never shows in a repr."""

    url: str | None = None  #: MILKRUN_URL; the local engine when absent
    api_key: str | None = field(default=None, repr=False)  #: MILKRUN_API_KEY
    local: bool = True  #: MILKRUN_LOCAL; whether a local engine may be started
    data_dir: Path = field(default_factory=default_data_dir)  #: MILKRUN_DATA_DIR; where the local engine lives

    @classmethod
    def load(
        cls,
        *,
        url: str | None = None,
        api_key: str | None = None,
        local: bool | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> Self:
        """
        Merge arguments, environment and defaults.

        Raises:
            ValueError: the URL, the key or `MILKRUN_LOCAL` can't be understood; the key is not quoted.
        """
        url = url or environ.get("MILKRUN_URL") or None
        if url is not None:
            try:
                usable = httpx.URL(url).scheme in ("http", "https") and bool(httpx.URL(url).host)
            except (httpx.InvalidURL, TypeError):
                usable = False
            if not usable:
                raise ValueError(
                    f"The engine's URL must look like http://host:port, not {url!r}: check MILKRUN_URL or url=."
                )
        api_key = (api_key or environ.get("MILKRUN_API_KEY") or "").strip()  # a mounted secret often ends in a newline
        if not api_key.isascii() or not api_key.isprintable():
            raise ValueError("The API key has characters that no key has: check MILKRUN_API_KEY or api_key=.")
        if local is None:
            local = _flag(environ.get("MILKRUN_LOCAL", ""))
        return cls(
            url=url.rstrip("/") if url else None,
            api_key=api_key or None,
            local=local,
            data_dir=Path(data_dir) if data_dir is not None else default_data_dir(environ),
        )


def _flag(text: str) -> bool:
    match text.strip().lower():
        case "" | "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off":
            return False
        case _:
            raise ValueError(f"MILKRUN_LOCAL must be 1 or 0, not {text!r}.")
