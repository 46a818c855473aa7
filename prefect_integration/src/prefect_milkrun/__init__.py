"""
Milkrun in Prefect: flows of batch LLM inference that suspend while they wait.
"""

from prefect_milkrun.credentials import MilkrunCredentials
from prefect_milkrun.failures import is_retryable
from prefect_milkrun.flows import Defer, ainfer, cancels_jobs, infer
from prefect_milkrun.jobs import MilkrunJob, MilkrunJobRun
from prefect_milkrun.results import MilkrunResults
from prefect_milkrun.tasks import afetch_results, asubmit_job, await_job, fetch_results, submit_job, wait_job

__all__ = [
    "Defer",
    "MilkrunCredentials",
    "MilkrunJob",
    "MilkrunJobRun",
    "MilkrunResults",
    "afetch_results",
    "ainfer",
    "asubmit_job",
    "await_job",
    "cancels_jobs",
    "fetch_results",
    "infer",
    "is_retryable",
    "submit_job",
    "wait_job",
]
