-- The newest runs of a queue in one status other than completed, without the long texts. Uses runs_by_status.
-- $1 queue, $2 how many, $3 status
select
    id, queue, job_id, name, tenant, status, fence, attempt, attempts, worker, error, kind, enqueued_at, started_at,
    finished_at, model_calls, input_tokens, output_tokens, cost_usd::text as cost_usd
from oxherd.runs
where queue = $1 and status = $3 and status <> 'completed'
order by started_at desc
limit $2
