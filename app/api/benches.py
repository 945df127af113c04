"""REST: test benches under `/api/v1/benches`: order one, see how far it is, read its results."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import HTMLResponse

from app.api.callers import Chat, Here, StrictRoute
from app.api.fields import After, Id, Key, Limit, check_json
from app.api.models import In, ListOf, Out, UsageOut, page
from app.domain import BenchResult, BenchStatus
from app.errors import InvalidInput
from app.suites.suite import Suite
from app.usecases import bench_results, benches
from app.usecases.benches import Shown

router = APIRouter(prefix="/api/v1/benches", route_class=StrictRoute, tags=["benches"])
EXAMPLE: dict[str, Any] = {
    "name": "greetings",
    "dataset": {"rows": [{"input": "Good morning", "expected": "Good morning"}]},
    "agents": [{"id": "fake_echo_agent"}],
    "scorers": [{"kind": "exact"}],
}
AfterItem = Annotated[
    str | None, Query(pattern=r"^\d{1,9}\.\d{1,4}\.\d{1,4}$", description="the `id` of the last item already seen")
]


class BenchIn(Suite):
    """A suite, as a file for `chattable bench` has it. Its data set is given as `rows`, as the `file_id` of an uploaded file, or
    as the answers in the caller's `sessions`; scorers in Python are for the command line.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [EXAMPLE]})


class ProgressOut(BaseModel):
    """How far a bench is. An item is one row put once to one agent; `score` is the mean of those that are done."""

    items: int
    done: int
    failed: int
    score: float | None
    cost: str


class ColumnOut(Out):
    """What one agent of a bench has come to. Failures count as 0; `p50` and `p95` are seconds."""

    agent: str = Field(validation_alias="name")
    items: int
    failed: int
    score: float
    scores: dict[str, float]
    cost: float
    tokens: int
    cached: int
    p50: float = Field(validation_alias="median")
    p95: float


class BenchItem(BaseModel):
    """A bench as it stands. `reason` says why it stopped or failed; `skipped` are broken rows that were left out."""

    id: UUID
    name: str
    status: BenchStatus
    reason: str | None
    rows: int
    skipped: int
    progress: ProgressOut
    created_at: datetime | None
    ended_at: datetime | None

    @classmethod
    def of(cls, shown: Shown, **more: Any) -> Self:
        """A bench as the edge gives it."""
        bench, far = shown.bench, shown.progress
        progress = ProgressOut(
            items=far.items,
            done=far.done,
            failed=far.failed,
            score=far.score / far.done if far.done else None,
            cost=f"{far.cost:f}",
        )
        fields = {name: getattr(bench, name) for name in cls.model_fields if name in bench.__struct_fields__}
        return cls(**{"progress": progress, **fields, **more})


class BenchOut(BenchItem):
    """A bench with its suite, and what each agent has come to."""

    suite: dict[str, Any]
    agents: list[ColumnOut]


class ResumeIn(In):
    """Whether to ask again what failed."""

    failed: bool = False


class ErrorOut(BaseModel):
    """Why an item failed, or has no score."""

    code: str
    message: str


class ResultOut(BaseModel):
    """What became of one item. `unscored` has an answer, of which a scorer could not say what it is worth."""

    id: str
    agent: str
    row: int
    repeat: int
    status: Literal["completed", "failed", "unscored"]
    answer: str | None
    score: float | None
    scores: dict[str, float]
    error: ErrorOut | None
    usage: UsageOut
    seconds: float
    from_cache: bool
    run_id: UUID | None


class ResultsOut(BaseModel):
    """A page of results, in the order of the rows."""

    object: Literal["list"] = "list"
    data: list[ResultOut]
    has_more: bool


class DifferenceOut(BaseModel):
    """Two agents over the rows that both have answered: what the second has more, with its 95 % interval and p-value."""

    first: str
    second: str
    rows: int
    difference: float
    low: float
    high: float
    better: int
    worse: int
    p: float
    test: str
    costs: tuple[float, float] = Field(description="of an item of each")
    seconds: tuple[float, float] = Field(description="that half of the answers of each take at most")


class DifferencesOut(BaseModel):
    """Agents of the same name in two benches; or of one bench, against its first."""

    object: Literal["list"] = "list"
    data: list[DifferenceOut]


async def _whole(here: Here, shown: Shown) -> BenchOut:
    columns = await bench_results.summary(here, shown.bench)
    return BenchOut.of(shown, agents=[ColumnOut.model_validate(each) for each in columns])


@router.post("", status_code=201)
async def create_bench(here: Here, caller: Chat, body: BenchIn, idempotency_key: Key = None) -> BenchOut:
    """Have rows put to agents and their answers scored, in the background. Requests with the same `Idempotency-Key` make one bench."""
    try:
        check_json(body.model_dump(mode="json"))
    except ValueError as error:
        raise InvalidInput(f"The suite {error}.", param="dataset.rows") from None
    return await _whole(here, await benches.create(here, caller, body, key=idempotency_key))


@router.get("")
async def list_benches(here: Here, caller: Chat, limit: Limit = 20, after: After = None) -> ListOf[BenchItem]:
    """The caller's benches, the newest first."""
    return page(BenchItem.of, await benches.list_page(here, caller, after=after, limit=limit))


@router.get("/{bench_id}")
async def get_bench(here: Here, caller: Chat, bench_id: Id) -> BenchOut:
    """How far a bench is, and what each of its agents has come to."""
    return await _whole(here, await benches.get(here, caller, bench_id))


@router.get("/{bench_id}/results")
async def list_bench_results(
    here: Here, caller: Chat, bench_id: Id, limit: Limit = 50, after: AfterItem = None, failed: bool = False
) -> ResultsOut:
    """What became of its items; with `failed` only of those that failed or have no score."""
    shown = await benches.get(here, caller, bench_id)
    names = benches.names_of(shown.bench)
    row, cell, repeat = map(int, (after or "0.0.0").split("."))
    place = (row, cell, repeat) if after else None
    found = await bench_results.results(here, caller, bench_id, after=place, limit=limit, failed=failed)
    return ResultsOut(data=[_result(each, names[each.cell]) for each in found.items], has_more=found.has_more)


@router.get("/{bench_id}/compare/{other_id}")
async def compare_benches(here: Here, caller: Chat, bench_id: Id, other_id: Id) -> DifferencesOut:
    """Whether the other bench is better, row by row, and what each costs; a bench with itself compares its agents."""
    first, second = [(await benches.get(here, caller, id)).bench for id in (bench_id, other_id)]
    return DifferencesOut(
        data=[
            DifferenceOut(
                first=each.first,
                second=each.second,
                rows=each.comparison.pairs,
                costs=each.costs,
                seconds=each.seconds,
                **{
                    name: getattr(each.comparison, name)
                    for name in ("difference", "low", "high", "better", "worse", "p", "test")
                },
            )
            for each in await bench_results.compared(here, first, second)
        ]
    )


@router.get("/{bench_id}/report", response_class=HTMLResponse)
async def get_bench_report(here: Here, caller: Chat, bench_id: Id) -> HTMLResponse:
    """The report: one page of HTML that loads nothing."""
    shown = await benches.get(here, caller, bench_id)
    headers = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox"}
    return HTMLResponse(await bench_results.report(here, shown.bench), headers=headers)


@router.post("/{bench_id}/cancel")
async def cancel_bench(here: Here, caller: Chat, bench_id: Id) -> BenchOut:
    """Begin no more of its items; what was answered stays."""
    return await _whole(here, await benches.cancel(here, caller, bench_id))


@router.post("/{bench_id}/resume")
async def resume_bench(here: Here, caller: Chat, bench_id: Id, body: ResumeIn) -> BenchOut:
    """Let a bench go on that stopped or was cancelled. No stored item is asked again, unless it failed and `failed` is true."""
    await benches.resume(here, caller, bench_id, failed=body.failed)
    return await _whole(here, await benches.get(here, caller, bench_id))


@router.delete("/{bench_id}", status_code=204)
async def delete_bench(here: Here, caller: Chat, bench_id: Id) -> None:
    """Erase a bench with its rows and results."""
    await benches.delete(here, caller, bench_id)


def _result(each: BenchResult, agent: str) -> ResultOut:
    error = each.error
    return ResultOut(
        id=f"{each.row}.{each.cell}.{each.repeat}",
        agent=agent,
        row=each.row,
        repeat=each.repeat,
        status=each.status,
        answer=each.answer,
        score=each.score,
        scores=dict(each.scores),
        error=ErrorOut(code=str(error.get("code", "")), message=str(error.get("message", ""))) if error else None,
        usage=UsageOut.model_validate(each.usage),
        seconds=each.seconds,
        from_cache=each.from_cache,
        run_id=each.run_id,
    )
