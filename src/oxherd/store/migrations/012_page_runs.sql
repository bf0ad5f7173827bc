-- page_runs of one status, in its index's order. It said `status <> 'completed'` as well, which the planner took for a
-- second, rare condition: it expected less than a page, and read and sorted all failed runs.

-- A page of runs, the newest first, without the long texts.
--   request {"queue", "status", "name", "tenant", "job_id", "worker": text | null, "since", "until": ms | null,
--           "after": [started ms, id] | null, "limit": int, "most": int}
--           until: started before; after: the last run that the page before looked at; most: runs to look at, at most
--   returns {"runs": [{…}], times in ms, money as text; "next": [started ms, id] | null, where to go on}
-- The narrowest of status, tenant and name chooses the index and so the order of walking; the others are looked at run by
-- run, for at most `most` of them. So a page never takes longer than that, and may be empty though more follow.
create or replace function oxherd.page_runs(request json) returns json
language plpgsql stable
set search_path = ''
as $function$
declare
    asked_status text := request ->> 'status';
    asked_name   text := request ->> 'name';
    asked_tenant text := request ->> 'tenant';
    walk         text := 'r.queue = $1';
    answer       json;
begin
    if asked_tenant is not null then
        walk := walk || ' and r.tenant = $3';
    elsif asked_status is not null and asked_status <> 'completed' then
        walk := walk || format(' and r.status = %L', asked_status);  -- a literal: it implies the index's predicate
    elsif asked_name is not null then
        walk := walk || ' and r.name = $4';
    end if;
    if request ->> 'since' is not null then
        walk := walk || ' and r.started_at >= $5';
    end if;
    if request ->> 'until' is not null then
        walk := walk || ' and r.started_at < $6';
    end if;
    if request ->> 'after' is not null then
        walk := walk || ' and r.started_at <= $7 and (r.started_at, r.id) < ($7, $8)';
    end if;
    execute format($query$
        with looked_at as materialized (  -- read no further than what follows asks for
            select
                r.id, r.queue, r.job_id, r.name, r.tenant, r.status, r.fence, r.attempt, r.attempts, r.worker, r.error,
                r.kind, r.enqueued_at, r.started_at, r.finished_at, r.model_calls, r.input_tokens, r.output_tokens,
                r.cost_usd
            from oxherd.runs r
            where %s
            order by r.started_at desc, r.id desc
            limit $9
        ), found as materialized (
            select l.*, row_number() over () as place
            from looked_at l
            where ($2 is null or l.status = $2)
                and ($3 is null or l.tenant = $3)
                and ($4 is null or l.name = $4)
                and ($10 is null or l.job_id = $10)
                and ($11 is null or l.worker = $11)
            limit $12 + 1
        )
        select json_build_object(
            'runs', coalesce((
                select json_agg(json_build_object(
                    'id', f.id, 'queue', f.queue, 'job_id', f.job_id, 'name', f.name, 'tenant', f.tenant,
                    'status', f.status, 'fence', f.fence, 'attempt', f.attempt, 'attempts', f.attempts,
                    'worker', f.worker, 'error', left(f.error, 1000), 'kind', f.kind,
                    'enqueued_at', (extract(epoch from f.enqueued_at) * 1000)::bigint,
                    'started_at', (extract(epoch from f.started_at) * 1000)::bigint,
                    'finished_at', (extract(epoch from f.finished_at) * 1000)::bigint,
                    'model_calls', f.model_calls, 'input_tokens', f.input_tokens,
                    'output_tokens', f.output_tokens, 'cost_usd', f.cost_usd::text
                ) order by f.place)
                from found f
                where f.place <= $12
            ), json_build_array()),
            'next', case
                when (select count(*) from found) > $12 then (
                    select json_build_array((extract(epoch from f.started_at) * 1000)::bigint, f.id)
                    from found f where f.place = $12
                )
                when (select count(*) from looked_at) = $9 then (
                    select json_build_array((extract(epoch from l.started_at) * 1000)::bigint, l.id)
                    from looked_at l order by l.started_at, l.id limit 1
                )
            end
        )
    $query$, walk)
    into answer
    using
        request ->> 'queue', asked_status, asked_tenant, asked_name,
        oxherd.time_of((request ->> 'since')::bigint), oxherd.time_of((request ->> 'until')::bigint),
        oxherd.time_of((request -> 'after' ->> 0)::bigint), request -> 'after' ->> 1,
        (request ->> 'most')::int, request ->> 'job_id', request ->> 'worker', (request ->> 'limit')::int;
    return answer;
end
$function$;
