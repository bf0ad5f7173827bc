"""A report every night: a child job for each region, side by side, then one summary of them all."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from oxherd import Budget, Context, Herd, WaitForChildren

herd = Herd()
analyst = herd.agent(
    "analyst",
    model="openai/gpt-5-mini",
    instructions="Sum up sales figures in one sentence. Name the product that did best.",
    max_output_tokens=100,
    budget=Budget(usd=0.02, steps=2),
)


class Nightly(BaseModel):
    regions: Annotated[list[str], Field(min_length=1)]


class Region(BaseModel):
    region: str


@herd.job("report.nightly", retries=3)
async def nightly(ctx: Context, report: Nightly) -> str:
    summaries = await ctx.children()
    if not summaries:
        for region in report.regions:
            await ctx.spawn("report.region", {"region": region}, attempts=3)  # added once, whatever happens
        raise WaitForChildren  # gives the slot back; this job runs again when all have finished
    # Sorted: what a model is asked must be the same on every attempt, and children come in no certain order.
    run = await ctx.run(analyst, "\n".join(sorted(summaries.values())))
    return run.output


@herd.job("report.region", timeout="5m")
async def region(ctx: Context, part: Region) -> str:
    figures = await ctx.step("figures", sales_of, part.region)
    run = await ctx.run(analyst, f"{part.region}: {figures}")
    return f"{part.region}: {run.output}"


async def sales_of(region: str) -> dict[str, int]:
    """Stands for a query that takes a while and should not be made twice."""
    return {"yokes": 10 * len(region), "bells": 7}
