"""The calls that users write, for the type checker; never run."""

from pydantic import BaseModel

import milkrun as mr


class Sentiment(BaseModel):
    label: str


def blocking(rows: list[dict[str, str]]) -> list[str | None]:
    job_id: str = mr.infer(rows, prompt="{text}", output_schema=Sentiment, job_priority=1, labels={"a": "b"})
    results: mr.Results = mr.await_job_results(job_id, timeout=60.0, on_progress=print)
    results.save("out.csv")
    with mr.Milkrun("http://engine", api_key="k", local=False) as client:
        submitted: mr.Submitted = client.submit(rows, column="text", reuse=mr.Reuse.never, kind="embed")
        client.cancel(submitted.job.id, submitted.claim)
        for job in client.as_ended([job_id], timeout=5):
            print(job.status.is_terminal, client.wait(job.id).usage.cached_tokens)
    return [row.text if row.error is None else row.error.code for row in results]


async def awaiting(rows: list[str]) -> list[mr.ResultRow]:
    async with mr.AsyncMilkrun() as client:
        job_id: str = await client.infer(inputs=rows, sampling={"temperature": 0})
        async for job in client.as_ended([job_id]):
            print(job.id)
        results: mr.AsyncResults = await client.await_job_results(job_id, max_failed_rows=3)
        await results.save("out.parquet")
        return [row async for row in results]


def wrong(rows: list[str]) -> None:
    mr.infer(rows, promt="x")  # type: ignore[call-arg]
    mr.infer(rows, job_priority="high")  # type: ignore[arg-type]
