-- The newest runs of a queue, without the long texts. Walks runs_recent backwards.
-- $1 queue, $2 how many, $3 status or null: completed here, as most runs are; the others are in recent_uncompleted
select
    id, queue, job_id, name, tenant, status, fence, attempt, attempts, worker, error, kind, enqueued_at, started_at,
    finished_at, model_calls, input_tokens, output_tokens, cost_usd::text as cost_usd
from oxherd.runs
where queue = $1 and ($3::text is null or status = $3)
order by started_at desc
limit $2
