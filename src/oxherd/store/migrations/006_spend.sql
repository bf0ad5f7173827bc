-- The ledger: a row for each try of a model call, also of those that failed, were cancelled or broke off.

create table oxherd.spend (
    id            text collate "C" primary key,
    run_id        text collate "C" not null,
    step          text not null,
    fence         bigint not null,            -- of the attempt that made the call
    tenant        text,
    agent         text not null,
    model         text not null,
    generation_id text,                       -- the model service's: its record of the call tells the bill
    state         text collate "C" not null check (state in ('reserved', 'settled', 'unknown')),
    input_tokens  bigint,
    output_tokens bigint,
    reserved_usd  numeric,                    -- null: no cap applied, or nobody knows the price
    cost_usd      numeric,                    -- null: not known (yet), which is not 0
    at            timestamptz not null,
    settled_at    timestamptz,
    check ((state = 'settled') = (cost_usd is not null))
);

create index spend_at on oxherd.spend (at);
create index spend_run on oxherd.spend (run_id);
create index spend_unsettled on oxherd.spend (at) where state = 'reserved';

alter table oxherd.spend enable row level security;

-- Write rows.
--   request [{the columns of oxherd.spend, at in ms}], no id twice; returns {"written": number}
-- Rows are written again as more is known. A settled row is final, and one whose bill was given up is only settled.
create function oxherd.write_spend(request json) returns json
language sql
set search_path = ''
as $function$
    with written as (
        insert into oxherd.spend as stored (
            id, run_id, step, fence, tenant, agent, model, generation_id, state, input_tokens, output_tokens,
            reserved_usd, cost_usd, at, settled_at
        )
        select
            id, run_id, step, fence, tenant, agent, model, generation_id, state, input_tokens, output_tokens,
            reserved_usd, cost_usd, oxherd.time_of(at), case when state = 'settled' then now() end
        from json_to_recordset(request) as given (
            id text, run_id text, step text, fence bigint, tenant text, agent text, model text, generation_id text,
            state text, input_tokens bigint, output_tokens bigint, reserved_usd numeric, cost_usd numeric, at bigint
        )
        order by id
        on conflict (id) do update set
            model = excluded.model, generation_id = coalesce(excluded.generation_id, stored.generation_id),
            state = excluded.state, input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens,
            cost_usd = excluded.cost_usd, settled_at = excluded.settled_at
        where stored.state = 'reserved' or (stored.state = 'unknown' and excluded.state = 'settled')
        returning 1
    )
    select json_build_object('written', (select count(*) from written))
$function$;

-- Rows whose bill is not known yet, the oldest first.
--   request {"before": ms, "run_id": text | null, "limit": int}; returns rows as they are written, money as text
create function oxherd.unsettled_spend(request json) returns json
language sql stable
set search_path = ''
as $function$
    select coalesce(json_agg(json_build_object(
        'id', page.id, 'run_id', page.run_id, 'step', page.step, 'fence', page.fence, 'tenant', page.tenant,
        'agent', page.agent, 'model', page.model, 'state', page.state,
        'at', (extract(epoch from page.at) * 1000)::bigint, 'generation_id', page.generation_id,
        'input_tokens', page.input_tokens, 'output_tokens', page.output_tokens,
        'reserved_usd', page.reserved_usd::text, 'cost_usd', page.cost_usd::text
    ) order by page.at, page.id), json_build_array())
    from (
        select s.*
        from oxherd.spend s
        where s.state = 'reserved'
            and s.at < oxherd.time_of((request ->> 'before')::bigint)
            and (request ->> 'run_id' is null or s.run_id = request ->> 'run_id')
        order by s.at, s.id
        limit (request ->> 'limit')::int
    ) as page
$function$;

-- What was spent, summed by day (UTC), tenant, agent or model, the dearest first; days in their order.
--   request {"by": text, "since": ms, "until": ms}
--   returns [{"key", "calls", "input_tokens", "output_tokens", "cost_usd", "open", "reserved_usd", "unknown"}]
create function oxherd.spend_report(request json) returns json
language sql stable
set search_path = ''
as $function$
    select coalesce(json_agg(json_build_object(
        'key', line.key, 'calls', line.calls, 'input_tokens', line.input_tokens, 'output_tokens', line.output_tokens,
        'cost_usd', line.cost_usd::text, 'open', line.open, 'reserved_usd', line.reserved_usd::text,
        'unknown', line.unknown
    ) order by case when request ->> 'by' = 'day' then line.key end, line.cost_usd desc, line.key), json_build_array())
    from (
        select
            case request ->> 'by'
                when 'day' then to_char(s.at at time zone 'UTC', 'YYYY-MM-DD')
                when 'tenant' then s.tenant
                when 'agent' then s.agent
                when 'model' then s.model
            end as key,
            count(*) as calls,
            coalesce(sum(s.input_tokens), 0) as input_tokens,
            coalesce(sum(s.output_tokens), 0) as output_tokens,
            coalesce(sum(s.cost_usd), 0) as cost_usd,
            count(*) filter (where s.state = 'reserved') as open,
            coalesce(sum(s.reserved_usd) filter (where s.state = 'reserved'), 0) as reserved_usd,
            count(*) filter (where s.state = 'unknown') as unknown
        from oxherd.spend s
        where s.at >= to_timestamp((request ->> 'since')::double precision / 1000)
            and s.at < to_timestamp((request ->> 'until')::double precision / 1000)
        group by 1
    ) as line
$function$;

revoke execute on function
    oxherd.write_spend(json), oxherd.unsettled_spend(json), oxherd.spend_report(json)
from public;

do $grants$
begin
    if exists (select from pg_catalog.pg_roles where rolname = 'service_role') then
        grant select, insert, update, delete on oxherd.spend to service_role;
        grant execute on function
            oxherd.write_spend(json), oxherd.unsettled_spend(json), oxherd.spend_report(json)
        to service_role;
    end if;
end
$grants$;
