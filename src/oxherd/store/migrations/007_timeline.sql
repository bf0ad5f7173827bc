-- Looking at a run's steps, and dropping them: what `oxherd runs` needs.

-- The newest run of a job id.
--   request {"queue", "job_id"}; returns {"id": text | null}
create function oxherd.find_run(request json) returns json
language sql stable
set search_path = ''
as $function$
    select json_build_object('id', (
        select r.id
        from oxherd.runs r
        -- '@' ends the job id and 'A' comes right after it: a range of the primary key
        where r.id > concat(request ->> 'queue', '/', request ->> 'job_id', '@') collate "C"
            and r.id < concat(request ->> 'queue', '/', request ->> 'job_id', 'A') collate "C"
        order by r.enqueued_at desc
        limit 1
    ))
$function$;

-- The finished steps of a run in the order in which they finished.
--   request {"run_id", "outputs": bool}; returns [{…}], times in ms; size: of the output, in bytes
create function oxherd.list_steps(request json) returns json
language sql stable
set search_path = ''
as $function$
    select coalesce(json_agg(json_build_object(
        'key', s.key, 'kind', s.kind, 'place', s.place, 'inputs', s.inputs, 'attempt', s.fence,
        'started_at', (extract(epoch from s.started_at) * 1000)::bigint, 'ms', s.ms,
        'model_calls', s.model_calls, 'input_tokens', s.input_tokens, 'output_tokens', s.output_tokens,
        'cost_usd', s.cost_usd::text, 'size', octet_length(s.output::text),
        'output', case when (request ->> 'outputs')::boolean then s.output::text end
    ) order by s.seq), json_build_array())
    from oxherd.steps s
    where s.run_id = request ->> 'run_id'
$function$;

-- Forget a step, all that finished after it, and those inside it.
--   request {"run_id", "key"}; returns {"dropped": [keys]}, none where there is no such step
create function oxherd.drop_steps(request json) returns json
language sql
set search_path = ''
as $function$
    with dropped as (
        delete from oxherd.steps s
        using oxherd.steps fork
        where fork.run_id = request ->> 'run_id' and fork.key = request ->> 'key'
            and s.run_id = fork.run_id
            and (s.seq >= fork.seq or starts_with(s.key, fork.key || '/'))
        returning s.key, s.seq
    )
    select json_build_object('dropped', coalesce(json_agg(d.key order by d.seq), json_build_array()))
    from dropped d
$function$;

revoke execute on function
    oxherd.find_run(json), oxherd.list_steps(json), oxherd.drop_steps(json)
from public;

do $grants$
begin
    if exists (select from pg_catalog.pg_roles where rolname = 'service_role') then
        grant execute on function
            oxherd.find_run(json), oxherd.list_steps(json), oxherd.drop_steps(json)
        to service_role;
    end if;
end
$grants$;
