"""
`MilkrunResource`: which engine, and as whom.
"""

import dagster as dg
from pydantic import Field, PrivateAttr

import milkrun as mr
from dagster_milkrun import _host


class MilkrunResource(dg.ConfigurableResource):  # type: ignore[type-arg]  # its parameter is for subclasses that return another value
    """
    A client of one Milkrun engine; it never starts a local one.

    Example:
        resources = {"milkrun": MilkrunResource(url="http://engine:8787", api_key=dg.EnvVar("MILKRUN_API_KEY"))}
    """

    url: str | None = Field(default=None, description="The engine's address; MILKRUN_URL when absent.")
    api_key: str | None = Field(default=None, description="The engine's API key; MILKRUN_API_KEY when absent.")
    deployment: str | None = Field(
        default=None,
        description="Tells the jobs of this Dagster deployment from those of others on the same engine; "
        "the id of its run storage when absent.",
    )
    webserver_url: str | None = Field(
        default=None, description="The address of Dagster's web server, so that a job's page links to its run."
    )

    _client: mr.Milkrun | None = PrivateAttr(default=None)

    @classmethod
    def _is_dagster_maintained(cls) -> bool:
        return False

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:  # noqa: ARG002 (Dagster's signature)
        """Make the client; no request is sent."""
        self._client = mr.Milkrun(self.url, self.api_key, local=False)

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:  # noqa: ARG002 (Dagster's signature)
        """Close the client's connections; jobs go on."""
        if self._client is not None:
            self._client.close()

    @property
    def client(self) -> mr.Milkrun:
        """The client, while a run, a sensor or `build_resources` has the resource open."""
        if self._client is None:
            raise dg.DagsterInvariantViolationError(
                "This MilkrunResource is not open: use it in an asset, op or sensor, or in dg.build_resources."
            )
        return self._client

    def deployment_of(self, instance: dg.DagsterInstance) -> str:
        """Return the name under which this deployment's jobs are found."""
        return self.deployment or _host.instance_id(instance)

    def run_url(self, run_id: str) -> str | None:
        """Return the address of a run's page, if the web server's is known."""
        return f"{self.webserver_url.rstrip('/')}/runs/{run_id}" if self.webserver_url else None


def opened(resources: object, key: str) -> MilkrunResource:
    """Return the resource of that key, or say what is there instead."""
    found: object = getattr(resources, key)
    if not isinstance(found, MilkrunResource):
        raise dg.DagsterInvariantViolationError(f"The resource {key!r} must be a MilkrunResource, not {found!r}.")
    return found
