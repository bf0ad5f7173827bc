-- The worker's writes, as functions: fencing needs conditions that a REST upsert has no words for, and both stores
-- then run the very same statements. All of them may be repeated: the second time changes nothing.

-- May a write with this fence touch the run as it is stored? Yes if no later attempt has begun. A lower fence is also
-- right where the queue's counter was reset (a job retried by hand): the run had ended before that attempt started.
create function oxherd.fence_holds(
    run oxherd.runs, fence bigint, attempt_started_at timestamptz
) returns boolean
language sql immutable
return (run).fence <= $2
    or ((run).status in ('completed', 'failed') and coalesce($3 > (run).finished_at, false));

-- Milliseconds since the epoch as a time; 0 means that it has not happened.
create function oxherd.time_of(ms bigint) returns timestamptz
language sql immutable
return to_timestamp(nullif($1, 0) / 1000.0::double precision);

-- A step's write and the claim of its run by a later attempt must not overlap: each would miss the other's row, and
-- the step would be paid for twice. They meet in one of 256 advisory locks, as the run's own row may not be there yet.
create function oxherd.meeting_point(run_id text) returns int
language sql immutable
return hashtext($1) & 255;

-- Write a batch of runs and steps in one transaction.
--   runs    array of objects with the columns of oxherd.runs, times in ms, output as text; no id twice
--   steps   array of objects with the columns of oxherd.steps and attempt_started_at; no (run_id, key) twice
--   returns {"runs": [positions refused, from 1] | null, "steps": the same}
-- A completed attempt's result is final: only another attempt may replace it.
-- A step that is there already stays, unless a later attempt had to run it again.
create function oxherd.write_batch(runs json, steps json) returns json
language plpgsql
set search_path = ''
as $function$
declare
    refused_runs  json;
    refused_steps json;
begin
    if steps is not null then  -- first of all, and in one order: then nobody waits in a circle
        perform pg_advisory_xact_lock_shared(1870162020, point)
        from (
            select distinct oxherd.meeting_point(run_id) as point
            from json_to_recordset(steps) as given (run_id text)
            order by point
        ) points;
    end if;

    if runs is not null then
        with given as materialized (
            select *
            from rows from (json_to_recordset(runs) as (
                id text, queue text, job_id text, name text, tenant text, status text, fence bigint, attempt int,
                attempts int, worker text, input text, output text, error text, kind text, stack text,
                enqueued_at bigint, started_at bigint, finished_at bigint,
                model_calls int, input_tokens bigint, output_tokens bigint, cost_usd numeric
            )) with ordinality as given (
                id, queue, job_id, name, tenant, status, fence, attempt, attempts, worker, input, output, error, kind,
                stack, enqueued_at, started_at, finished_at, model_calls, input_tokens, output_tokens, cost_usd, place
            )
        ), written as (
            insert into oxherd.runs as stored (
                id, queue, job_id, name, tenant, status, fence, attempt, attempts, worker, input, output, error, kind,
                stack, enqueued_at, started_at, finished_at, model_calls, input_tokens, output_tokens, cost_usd
            )
            select
                id, queue, job_id, name, tenant, status, fence, attempt, attempts, worker, input, output::json, error,
                kind, stack, oxherd.time_of(enqueued_at), oxherd.time_of(started_at), oxherd.time_of(finished_at),
                model_calls, input_tokens, output_tokens, cost_usd
            from given
            on conflict (id) do update set
                name = excluded.name, tenant = excluded.tenant, status = excluded.status, fence = excluded.fence,
                attempt = excluded.attempt, attempts = excluded.attempts, worker = excluded.worker,
                input = excluded.input, output = excluded.output, error = excluded.error, kind = excluded.kind,
                stack = excluded.stack, enqueued_at = excluded.enqueued_at, started_at = excluded.started_at,
                finished_at = excluded.finished_at, model_calls = excluded.model_calls,
                input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens,
                cost_usd = excluded.cost_usd
            where oxherd.fence_holds(stored, excluded.fence, excluded.started_at)
                and not (
                    stored.status = 'completed' and stored.attempt = excluded.attempt
                    and (
                        stored.fence < excluded.fence
                        -- the very same attempt, whose end the queue lost in a failover
                        or (
                            stored.fence = excluded.fence and excluded.status = 'running'
                            and excluded.started_at <= stored.finished_at
                        )
                    )
                )
            returning stored.id
        )
        select json_agg(given.place)
        into refused_runs
        from given
        where given.id not in (select written.id from written);
    end if;

    if steps is not null then
        with given as materialized (
            select
                place, run_id, key, kind, inputs, output::json as output, fence, oxherd.time_of(started_at) as started_at,
                ms, place_of, model_calls, input_tokens, output_tokens, cost_usd,
                exists (
                    select from oxherd.runs stored
                    where stored.id = run_id
                        and not oxherd.fence_holds(stored, given.fence, oxherd.time_of(attempt_started_at))
                ) as refused
            from rows from (json_to_recordset(steps) as (
                run_id text, key text, kind text, inputs text, output text, fence bigint, attempt_started_at bigint,
                started_at bigint, ms double precision, place text, model_calls int, input_tokens bigint,
                output_tokens bigint,
                cost_usd numeric
            )) with ordinality as given (
                run_id, key, kind, inputs, output, fence, attempt_started_at, started_at, ms, place_of, model_calls,
                input_tokens, output_tokens, cost_usd, place
            )
        ), written as (
            insert into oxherd.steps as stored (
                run_id, key, kind, inputs, output, fence, started_at, ms, place, model_calls, input_tokens,
                output_tokens, cost_usd
            )
            select
                run_id, key, kind, inputs, output, fence, started_at, ms, place_of, model_calls, input_tokens,
                output_tokens, cost_usd
            from given
            where not refused
            order by place
            on conflict (run_id, key) do update set
                kind = excluded.kind, inputs = excluded.inputs, output = excluded.output, fence = excluded.fence,
                started_at = excluded.started_at, ms = excluded.ms, place = excluded.place,
                model_calls = excluded.model_calls,
                input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens,
                cost_usd = excluded.cost_usd
            where stored.fence < excluded.fence
        )
        select json_agg(given.place)
        into refused_steps
        from given
        where refused;
    end if;

    return json_build_object('runs', refused_runs, 'steps', refused_steps);
end
$function$;

-- Claim a run for a later attempt and hand over what earlier ones left.
--   run     one object as for write_batch, status running
--   returns {"allowed": bool, "output": text | null, "steps": [{…}]}; output where this very attempt had completed
--           before its worker died: it is then not claimed and need not run again
-- The claim comes before the steps are read, each with its own snapshot and none beside a step's write: a step that an
-- older attempt managed to write before the claim is handed over, and one after it is refused.
create function oxherd.begin_run(run json) returns json
language plpgsql
set search_path = ''
as $function$
declare
    refused json;
    stored  oxherd.runs;
    kept    json;
begin
    perform pg_advisory_xact_lock(1870162020, oxherd.meeting_point(run ->> 'id'));
    refused := oxherd.write_batch(json_build_array(run), null) -> 'runs';
    if refused is not null and json_typeof(refused) = 'array' then
        select * into stored from oxherd.runs r where r.id = run ->> 'id';
        return json_build_object(
            'allowed', stored.fence <= (run ->> 'fence')::bigint,
            'output', case when stored.fence <= (run ->> 'fence')::bigint then stored.output::text end,
            'steps', json_build_array()
        );
    end if;
    select coalesce(json_agg(json_build_object(
        'key', s.key, 'kind', s.kind, 'inputs', s.inputs, 'output', s.output::text, 'fence', s.fence,
        'started_at', (extract(epoch from s.started_at) * 1000)::bigint, 'ms', s.ms, 'place', s.place,
        'model_calls', s.model_calls, 'input_tokens', s.input_tokens, 'output_tokens', s.output_tokens,
        'cost_usd', s.cost_usd::text
    ) order by s.seq), json_build_array())
    into kept
    from oxherd.steps s
    where s.run_id = run ->> 'id';
    return json_build_object('allowed', true, 'output', null, 'steps', kept);
end
$function$;

revoke execute on function
    oxherd.fence_holds(oxherd.runs, bigint, timestamptz), oxherd.time_of(bigint), oxherd.meeting_point(text),
    oxherd.write_batch(json, json), oxherd.begin_run(json)
from public;

do $grants$
begin
    if exists (select from pg_catalog.pg_roles where rolname = 'service_role') then
        grant execute on function
            oxherd.fence_holds(oxherd.runs, bigint, timestamptz), oxherd.time_of(bigint), oxherd.meeting_point(text),
            oxherd.write_batch(json, json), oxherd.begin_run(json)
        to service_role;
    end if;
end
$grants$;
