-- One run with everything.
-- $1 id
select
    id, queue, job_id, name, tenant, status, fence, attempt, attempts, worker, input, output::text as output, error,
    kind, stack, enqueued_at, started_at, finished_at, model_calls, input_tokens, output_tokens,
    cost_usd::text as cost_usd
from oxherd.runs
where id = $1
