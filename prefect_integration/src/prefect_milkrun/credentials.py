"""
`MilkrunCredentials`: where the engine is, who we are, and the clients made of both.
"""

import atexit
import functools
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ClassVar, Self, cast

from prefect.blocks.abstract import CredentialsBlock
from pydantic import Field, HttpUrl, SecretStr

import milkrun as mr
from milkrun.settings import Settings

Progress = Callable[[mr.Job], object]


class MilkrunCredentials(CredentialsBlock):
    """
    Address and API key of a Milkrun engine, and clients for it.

    Whatever is not given is read from `MILKRUN_URL` and `MILKRUN_API_KEY` where the flow runs.

    Example:
        Load stored credentials:
        ```python
        from prefect_milkrun import MilkrunCredentials

        credentials = MilkrunCredentials.load("BLOCK_NAME")
        with credentials.get_client() as client:
            print(client.models())
        ```
    """

    _block_type_name: ClassVar[str | None] = "Milkrun Credentials"
    _block_type_slug: ClassVar[str | None] = "milkrun-credentials"
    _documentation_url: ClassVar[HttpUrl | None] = cast(HttpUrl, "https://docs.prefect.io/v3/concepts/blocks")

    base_url: HttpUrl | None = Field(
        default=None, title="Base URL", description="The engine's address, such as http://engine:8787."
    )
    api_key: SecretStr | None = Field(default=None, title="API Key", description="A key of the engine.")
    local: bool = Field(
        default=False, description="Whether a local engine may be started where no address is known (a laptop)."
    )
    prefect_api_url: str | None = Field(
        default=None,
        title="Prefect API URL",
        description="This Prefect server's API as the engine reaches it; PREFECT_API_URL when absent.",
    )

    @classmethod
    def of(cls, given: "MilkrunCredentials | str | None") -> Self:
        """Return a block as it is, load one by its name, or make one that reads the environment."""
        match given:
            case cls():
                return given
            case str():
                # Prefect's own choice between the two worlds looks at the running flow, which may be async.
                return cast(Self, cls.load(given, _sync=True))  # type: ignore[call-arg]
            case _:
                return cls()

    @property
    def url(self) -> str | None:
        """The address as clients take it."""
        return str(self.base_url).rstrip("/") if self.base_url else None

    @property
    def block_name(self) -> str | None:
        """The name that it was stored under."""
        return self._block_document_name

    @property
    def _key(self) -> str | None:
        return self.api_key.get_secret_value() if self.api_key else None

    def get_client(self, *_args: Any, **_options: Any) -> mr.Milkrun:
        """Return a blocking client; close it, or use it in a with statement."""
        return mr.Milkrun(self.url, self._key, local=self.local)

    def get_async_client(self) -> mr.AsyncMilkrun:
        """Return an awaiting client; close it, or use it in an async with statement."""
        return mr.AsyncMilkrun(self.url, self._key, local=self.local)

    def watch(self, job_id: str, on_progress: Progress | None = None) -> Future[mr.Job]:
        """
        Return a future of the job as it will have ended: any number in this process over one connection.

        Cancelling the future ends the wait, not the job.
        """
        return self._watcher().watch(job_id, on_progress)

    def _watcher(self) -> mr.Watcher:
        is_local = self.local and Settings.load(url=self.url).url is None
        return _local_watcher() if is_local else mr.Watcher.shared(self.url, self._key)


@functools.cache
def _local_watcher() -> mr.Watcher:
    watcher = mr.Watcher(mr.Milkrun(local=True))
    atexit.register(watcher.close)
    return watcher
