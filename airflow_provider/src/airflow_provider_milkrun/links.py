"""
The button on a task's page that leads to its job.
"""

from typing import Any

from airflow.providers.common.compat.sdk import XCom
from airflow.sdk import BaseOperatorLink

JOB_URL = (
    "milkrun_job_url"  #: the XCom with the address: written before the task defers, so the button is there at once
)


class MilkrunJobLink(BaseOperatorLink):
    """Leads to the job's page."""

    @property
    def name(self) -> str:
        """The button's text."""
        return "Milkrun job"

    @property
    def xcom_key(self) -> str:
        """The XCom that the web server reads."""
        return JOB_URL

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002 (Airflow's signature)
        """Return the address, or nothing while there is no job."""
        return XCom.get_value(key=JOB_URL, ti_key=ti_key) or ""
