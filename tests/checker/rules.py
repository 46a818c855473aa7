"""
The rules: each reads facts and yields a sentence for everything that breaks it. Pure.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

from checker.facts import Chunk, Evidence, Ledger, Row

CODES = frozenset(
    {
        "invalid_row", "context_length_exceeded", "model_not_found", "model_unavailable", "schema_rejected",
        "truncated", "engine_crash", "timeout", "cancelled", "expired", "content_blocked", "internal",
    }
)  # fmt: skip
STOPPED_CODES = frozenset({"cancelled", "expired"})
ENDED = frozenset({"succeeded", "failed", "cancelled", "expired"})
ORDER = {"preparing": 0, "queued": 1, "running": 2, **dict.fromkeys(ENDED, 3)}
CLOCK_SLACK_SECONDS = 0.005  # the ledger's clock counts milliseconds
_SHOWN = 3


def violations(evidence: Evidence) -> list[str]:
    """What is wrong with a job that has ended; nothing, when it kept every promise."""
    rules: list[Callable[[Evidence], Iterator[str]]] = [
        rows_are_dense, rows_have_one_outcome, answers_are_right, counts_are_right, pages_are_the_ledger,
        exports_are_pages, nothing_ran_after_its_commit, only_interrupted_work_was_redone, copied_rows_never_ran,
        feed_moves_forward,
    ]  # fmt: skip
    found = [broken for rule in rules for broken in rule(evidence)]
    return found + ledger_violations(evidence.ledger)


def ledger_violations(ledger: Ledger) -> list[str]:
    """What is wrong with a job by the ledger and its files alone; also while it runs."""
    rules: list[Callable[[Ledger], Iterator[str]]] = [
        windows_tile_the_input, chunks_hold_each_row_once, files_are_whole, counts_are_the_fold, the_end_is_final,
    ]  # fmt: skip
    return [f"{broken} ({ledger.job['id']})" for rule in rules for broken in rule(ledger)]


def rows_are_dense(evidence: Evidence) -> Iterator[str]:
    """Every accepted row is there once, in the caller's order."""
    if evidence.job["status"] not in ENDED:
        yield f"the job has not ended: {evidence.job['status']}"
    indices = [row.index for row in evidence.rows]
    if indices != list(range(len(indices))):
        wrong = next(at for at, index in enumerate(indices) if index != at)
        yield f"rows are not dense and in order: row {indices[wrong]} stands at place {wrong}"
    if evidence.job["rows_total"] != len(indices):
        yield f"{len(indices)} rows are readable, rows_total is {evidence.job['rows_total']}"


def rows_have_one_outcome(evidence: Evidence) -> Iterator[str]:
    """A row is a result or a typed error, never both, never neither."""
    for row in evidence.rows:
        succeeded = row.status == "succeeded" and row.code is None and row.output is not None
        failed = row.status == "failed" and row.code in CODES and row.output is None
        if not succeeded and not failed:
            yield f"row {row.index} is neither a result nor a typed error: {row.status}, {row.code}"


def answers_are_right(evidence: Evidence) -> Iterator[str]:
    """Key, status, code and output are those of the input; a stopped job's undecided rows say so."""
    expected = evidence.expected
    if expected is None:
        return
    stopped = evidence.job["status"] in ("cancelled", "expired", "failed")
    if len(evidence.rows) != len(expected) and not stopped:
        yield f"{len(evidence.rows)} rows came back of {len(expected)}"
    wrong = [
        f"row {row.index} is {row.answer}, not {answer}"
        for row, answer in zip(evidence.rows, expected, strict=False)
        if row.answer != answer and not (stopped and row.code in STOPPED_CODES and row.key == answer.key)
    ]
    yield from wrong[:_SHOWN]


def counts_are_right(evidence: Evidence) -> Iterator[str]:
    """The API's counts are those of its rows."""
    job, counts = evidence.job, evidence.job["usage"]
    stopped = job["rows_cancelled"]
    decided = [row for row in evidence.rows if not stopped or row.code not in STOPPED_CODES]
    codes = Counter(row.code for row in decided if row.code is not None)
    ran = [row for row in decided if row.index not in evidence.ledger.copied]
    found = {
        "rows_succeeded": sum(row.status == "succeeded" for row in decided),
        "rows_failed": sum(codes.values()),
        "rows_cancelled": len(evidence.rows) - len(decided),
        "rows_reused": len(decided) - len(ran),
        "row_errors": dict(codes),
        "prompt_tokens": sum(row.prompt_tokens for row in ran),
        "cached_tokens": sum(row.cached_tokens for row in ran),
        "completion_tokens": sum(row.completion_tokens for row in ran),
    }
    for name, value in found.items():
        told = counts[name] if name.endswith("tokens") else job[name]
        if told != value:
            yield f"the API says {name} {told}; the rows say {value}"


def pages_are_the_ledger(evidence: Evidence) -> Iterator[str]:
    """What is read is what was committed; the rest is typed as stopped."""
    committed = {row.index: row for chunk in evidence.ledger.chunks for row in _committed(chunk)}
    wrong = [
        f"row {row.index} reads {row.answer}, its committed file says {known.answer if known else 'nothing'}"
        for row in evidence.rows
        for known in [committed.get(row.index)]
        if (known is None and row.code not in STOPPED_CODES) or (known is not None and known != row)
    ]
    yield from wrong[:_SHOWN]
    if lost := committed.keys() - {row.index for row in evidence.rows}:
        yield f"{len(lost)} committed rows can't be read, row {min(lost)} among them"
    told = {name: evidence.ledger.job[name] for name in ("status", "rows_total", "rows_succeeded", "rows_failed")}
    if told != {name: evidence.job[name] for name in told}:
        yield f"the API and the ledger differ: {told}"


def exports_are_pages(evidence: Evidence) -> Iterator[str]:
    """Every export says what the pages say."""
    for form, rows in evidence.exports.items():
        pages = list(evidence.rows) if form == "jsonl" else [_as_table_row(row) for row in evidence.rows]
        exported = list(rows) if form == "jsonl" else [_as_table_row(row) for row in rows]
        if pages != exported:
            differing = next(
                (at for at, pair in enumerate(zip(pages, exported, strict=False)) if pair[0] != pair[1]), -1
            )
            yield f"the {form} export differs from the pages at place {differing} ({len(exported)} rows)"


def nothing_ran_after_its_commit(evidence: Evidence) -> Iterator[str]:
    """A committed chunk is never computed again."""
    chunks = {chunk.number: chunk for chunk in evidence.ledger.chunks}
    for run in evidence.executions or ():
        chunk = chunks.get(run.chunk)
        if chunk is None or run.index not in chunk.slots:
            yield f"row {run.index} ran in chunk {run.chunk}, which does not hold it"
        elif chunk.committed_at is None:
            continue
        elif run.at > chunk.committed_at + CLOCK_SLACK_SECONDS:
            yield f"row {run.index} ran {run.at - chunk.committed_at:.3f} s after its chunk {run.chunk} was committed"
        elif run.epoch > chunk.lease_epoch:
            yield f"row {run.index} ran under lease {run.epoch}, its chunk was committed under {chunk.lease_epoch}"


def only_interrupted_work_was_redone(evidence: Evidence) -> Iterator[str]:
    """Rows run again only for a lease that an interruption took, or for a replica that died."""
    if evidence.executions is None:
        return
    job_id = evidence.job["id"]
    leased = {
        (chunk, epoch)
        for cut in evidence.interruptions
        for (job, chunk), (epoch, _) in cut.leased.items()
        if job == job_id
    }
    lasts = {chunk.number: chunk.lease_epoch for chunk in evidence.ledger.chunks}
    begun = {(run.chunk, run.epoch) for run in evidence.executions}
    for chunk, epoch in sorted(begun):
        if epoch < lasts.get(chunk, epoch) and (chunk, epoch) not in leased:
            yield f"chunk {chunk} ran under lease {epoch} and again later, but no interruption took that lease"
    redone = rows_redone(evidence)
    allowed = sum(cut.rows(job_id) for cut in evidence.interruptions) + evidence.spare_executions
    if redone > allowed:
        yield f"{redone} rows ran again; the interrupted leases held {allowed}"


def copied_rows_never_ran(evidence: Evidence) -> Iterator[str]:
    """A row that a retry took over from its parent is not computed again."""
    if again := sorted({run.index for run in evidence.executions or ()} & evidence.ledger.copied):
        yield f"{len(again)} rows that were taken over from {evidence.job['rows_from']} ran, row {again[0]} among them"


def rows_redone(evidence: Evidence) -> int:
    """How many executions there were beyond one a row."""
    return sum(count - 1 for count in Counter(run.index for run in evidence.executions or ()).values())


def feed_moves_forward(evidence: Evidence) -> Iterator[str]:
    """The change feed showed the job, and never a state earlier than one that it had shown before."""
    if evidence.cursors and not evidence.sightings:
        yield "the change feed never showed the job"
    if list(evidence.cursors) != sorted(evidence.cursors):
        yield "the change feed's cursor went backwards"
    for before, after in zip(evidence.sightings, evidence.sightings[1:], strict=False):
        if ORDER[after.status] < ORDER[before.status] or after.decided < before.decided:
            yield f"the change feed went backwards: {before}, then {after}"
        if before.status in ENDED and after.status != before.status:
            yield f"the change feed showed two ends: {before.status}, then {after.status}"
    if evidence.sightings and evidence.sightings[-1].status != evidence.job["status"]:
        yield f"the change feed last showed {evidence.sightings[-1].status}, the job is {evidence.job['status']}"


def windows_tile_the_input(ledger: Ledger) -> Iterator[str]:
    """Windows follow one another without gap, and count the rows read."""
    at = 0
    for number, window in enumerate(ledger.windows):
        if (window.number, window.first_index) != (number, at):
            yield f"window {window.number} begins at row {window.first_index}, not {at}"
        at += window.rows
    if at != ledger.job["rows_read"]:
        yield f"the windows hold {at} rows, {ledger.job['rows_read']} were read"


def chunks_hold_each_row_once(ledger: Ledger) -> Iterator[str]:
    """A window's chunks hold each of its rows once, at the place that its permutation says."""
    for window in ledger.windows:
        chunks = [chunk for chunk in ledger.chunks if chunk.window == window.number]
        held = sorted(index for chunk in chunks for index in chunk.slots)
        if held != list(range(window.first_index, window.first_index + window.rows)):
            yield f"the chunks of window {window.number} do not hold each of its rows once"
            continue
        for offset, (ordinal, slot) in enumerate(window.places):
            if chunks[ordinal].slots[slot] != window.first_index + offset:
                yield f"the permutation of window {window.number} misplaces row {window.first_index + offset}"
                break
    for chunk in ledger.chunks:
        if (len(chunk.slots), min(chunk.slots)) != (chunk.rows, chunk.first_index):
            yield f"chunk {chunk.number} is not the file that it names"


def files_are_whole(ledger: Ledger) -> Iterator[str]:
    """A committed chunk's result file has the bytes of the ledger's hash and one outcome for each of its rows."""
    for chunk in ledger.chunks:
        if chunk.state != "committed":
            continue
        if chunk.file_sha256 is None:
            yield f"chunk {chunk.number} is committed and its result file is missing"
        elif chunk.file_sha256 != chunk.result_sha256:
            yield f"chunk {chunk.number}'s result file does not have the bytes that were committed"
        elif [row.index for row in chunk.results] != sorted(chunk.slots):
            yield f"chunk {chunk.number}'s result file does not hold its rows, sorted"
        errors = Counter(row.code for row in chunk.results if row.code)
        if (chunk.rows_failed, dict(chunk.errors)) != (sum(errors.values()), dict(errors)):
            yield f"chunk {chunk.number} counts its failed rows wrongly"


def counts_are_the_fold(ledger: Ledger) -> Iterator[str]:
    """A job's counts are those of its committed chunks, no more and no less; tokens those of what it ran."""
    rows = [row for chunk in ledger.chunks for row in _committed(chunk)]
    ran = [row for row in rows if row.index not in ledger.copied]
    fold = {
        "rows_decided": len(rows),
        "rows_succeeded": sum(row.status == "succeeded" for row in rows),
        "rows_failed": sum(row.status == "failed" for row in rows),
        "prompt_tokens": sum(row.prompt_tokens for row in ran),
        "cached_tokens": sum(row.cached_tokens for row in ran),
        "completion_tokens": sum(row.completion_tokens for row in ran),
    }
    for name, value in fold.items():
        if ledger.job[name] != value:
            yield f"the ledger counts {name} {ledger.job[name]}; its committed files hold {value}"


def the_end_is_final(ledger: Ledger) -> Iterator[str]:
    """Nothing is leased or committed after a job's end; a succeeded job has every row decided."""
    job = ledger.job
    if job["status"] not in ENDED:
        return
    for chunk in ledger.chunks:
        if chunk.state in ("ready", "leased"):
            yield f"the job has ended and chunk {chunk.number} is {chunk.state}"
        if chunk.committed_at is not None and chunk.committed_at > job["finished_at"]:
            yield f"chunk {chunk.number} was committed {chunk.committed_at - job['finished_at']:.3f} s after the end"
    if job["status"] == "succeeded" and job["rows_decided"] != job["rows_total"]:
        yield f"the job succeeded with {job['rows_decided']} of {job['rows_total']} rows decided"
    if job["status"] in ("cancelled", "expired") and job["epoch"] < 2:
        yield "the job was stopped without a new epoch: its old leases can still commit"


def _committed(chunk: Chunk) -> list[Row]:
    return list(chunk.results) if chunk.state == "committed" else []


def _as_table_row(row: Row) -> Row:
    """A row as a table of texts has it: an output that is no text stands there as JSON."""
    return replace(row, key=row.key or None, message=row.message or None, output=row.output or None)
