-- The ledger summed by day, so that a report over a month does not read a million rows. Triggers keep it, so it is right
-- whoever writes to the ledger: a worker of an earlier release, or somebody who deletes old rows.

-- Of calls that are settled or unknown. Those that are still reserved are few, and spend_unsettled finds them.
create table oxherd.spend_by_day (
    day           date not null,      -- UTC
    slot          smallint not null,  -- who writes at the same time as others has rows of its own: see sum_spend
    payer         bytea not null,     -- digest of the next three: they may be too long for an index
    tenant        text,
    agent         text not null,
    model         text not null,
    calls         bigint not null,    -- of one slot, this and the others may be negative; their sum is not
    input_tokens  numeric not null,
    output_tokens numeric not null,
    cost_usd      numeric not null,
    unknown       bigint not null,    -- calls that are unknown
    primary key (day, slot, payer)
);

alter table oxherd.spend_by_day enable row level security;

-- A trigger for each way of writing; they differ in the rows that count. With the owner's rights: whoever writes to the
-- ledger needs none on its sums.
do $triggers$
declare
    way record;
begin
    for way in values
        ('insert', 'new table as added', 'select 1 as sign, a.* from added a'),
        ('delete', 'old table as removed', 'select -1 as sign, r.* from removed r'),
        ('update', 'old table as removed new table as added',
            'select 1 as sign, a.* from added a union all select -1, r.* from removed r')
    loop
        execute format($define$
            create function oxherd.sum_spend_%1$s() returns trigger
            language plpgsql security definer
            set search_path = ''
            as $function$
            declare
                slots constant int := 16;
                mine  int := 0;
            begin
                if not exists (select from (%3$s) as c where c.state <> 'reserved') then
                    return null;
                end if;
                -- Without slots, workers would wait for one another at today's rows, and in a circle where they come to
                -- them in another order. One is ours until the end of the transaction, and its next trigger gets it again.
                while not pg_try_advisory_xact_lock(1870162021, mine) loop
                    mine := mine + 1;
                    if mine = slots then
                        mine := pg_backend_pid() %% slots;
                        perform pg_advisory_xact_lock(1870162021, mine);
                        exit;
                    end if;
                end loop;
                insert into oxherd.spend_by_day as stored
                select
                    (c.at at time zone 'UTC')::date, mine,
                    sha256(convert_to(json_build_array(c.tenant, c.agent, c.model)::text, 'UTF8')),
                    c.tenant, c.agent, c.model, sum(c.sign), coalesce(sum(c.sign * c.input_tokens), 0),
                    coalesce(sum(c.sign * c.output_tokens), 0), coalesce(sum(c.sign * c.cost_usd), 0),
                    coalesce(sum(c.sign) filter (where c.state = 'unknown'), 0)
                from (%3$s) as c
                where c.state <> 'reserved'
                group by 1, c.tenant, c.agent, c.model
                on conflict (day, slot, payer) do update set
                    calls = stored.calls + excluded.calls, input_tokens = stored.input_tokens + excluded.input_tokens,
                    output_tokens = stored.output_tokens + excluded.output_tokens,
                    cost_usd = stored.cost_usd + excluded.cost_usd, unknown = stored.unknown + excluded.unknown;
                return null;
            end
            $function$;
            revoke execute on function oxherd.sum_spend_%1$s() from public;
            create trigger sum_%1$s after %1$s on oxherd.spend referencing %2$s
            for each statement execute function oxherd.sum_spend_%1$s();
        $define$, way.column1, way.column2, way.column3);
    end loop;
end
$triggers$;

create function oxherd.forget_spend() returns trigger
language plpgsql security definer
set search_path = ''
as $function$
begin
    truncate oxherd.spend_by_day;
    return null;
end
$function$;

revoke execute on function oxherd.forget_spend() from public;

create trigger sum_truncate after truncate on oxherd.spend for each statement execute function oxherd.forget_spend();

-- Nobody else can write to the ledger from here to the end of the migration.
insert into oxherd.spend_by_day
select
    (s.at at time zone 'UTC')::date, 0, sha256(convert_to(json_build_array(s.tenant, s.agent, s.model)::text, 'UTF8')),
    s.tenant, s.agent, s.model, count(*), coalesce(sum(s.input_tokens), 0), coalesce(sum(s.output_tokens), 0),
    coalesce(sum(s.cost_usd), 0), count(*) filter (where s.state = 'unknown')
from oxherd.spend s
where s.state <> 'reserved'
group by 1, s.tenant, s.agent, s.model;

-- What was spent, summed by day (UTC), tenant, agent or model, the dearest first; days in their order. Whole days come
-- from spend_by_day, what is before and after them and what is reserved from the ledger itself.
--   request {"by": text, "since": ms, "until": ms}
--   returns [{"key", "calls", "input_tokens", "output_tokens", "cost_usd", "open", "reserved_usd", "unknown"}]
create or replace function oxherd.spend_report(request json) returns json
language plpgsql stable
set search_path = ''
as $function$
declare
    asked text := request ->> 'by';
    since timestamptz := to_timestamp((request ->> 'since')::double precision / 1000);
    until timestamptz := to_timestamp((request ->> 'until')::double precision / 1000);
    first timestamptz := to_timestamp(86400 * ceil(extract(epoch from since) / 86400));  -- of the whole days
    ended timestamptz := greatest(first, to_timestamp(86400 * floor(extract(epoch from until) / 86400)));
begin
    return (
        select coalesce(json_agg(json_build_object(
            'key', line.key, 'calls', line.calls, 'input_tokens', line.input_tokens,
            'output_tokens', line.output_tokens, 'cost_usd', line.cost_usd::text, 'open', line.open,
            'reserved_usd', line.reserved_usd::text, 'unknown', line.unknown
        ) order by case when asked = 'day' then line.key end, line.cost_usd desc, line.key), json_build_array())
        from (
            select
                case asked
                    when 'day' then to_char(part.day, 'YYYY-MM-DD')
                    when 'tenant' then part.tenant
                    when 'agent' then part.agent
                    when 'model' then part.model
                end as key,
                sum(part.calls) as calls,
                coalesce(sum(part.input_tokens), 0) as input_tokens,
                coalesce(sum(part.output_tokens), 0) as output_tokens,
                coalesce(sum(part.cost_usd), 0) as cost_usd,
                count(*) filter (where part.state = 'reserved') as open,
                coalesce(sum(part.reserved_usd) filter (where part.state = 'reserved'), 0) as reserved_usd,
                sum(part.unknown) as unknown
            from (
                select
                    d.day, d.tenant, d.agent, d.model, d.calls, d.input_tokens, d.output_tokens, d.cost_usd, d.unknown,
                    null as state, null as reserved_usd
                from oxherd.spend_by_day d
                where d.day >= (first at time zone 'UTC')::date and d.day < (ended at time zone 'UTC')::date
                union all
                select
                    (s.at at time zone 'UTC')::date, s.tenant, s.agent, s.model, 1, s.input_tokens, s.output_tokens,
                    s.cost_usd, (s.state = 'unknown')::int, s.state, s.reserved_usd
                from oxherd.spend s
                where s.state = 'reserved' and s.at >= first and s.at < ended
                    or s.at >= since and s.at < least(first, until)
                    or s.at >= ended and s.at < until
            ) as part
            group by 1
        ) as line
        where line.calls > 0  -- a day's rows stay when all its calls were deleted
    );
end
$function$;

do $grants$
begin
    if exists (select from pg_catalog.pg_roles where rolname = 'service_role') then
        grant select on oxherd.spend_by_day to service_role;
    end if;
end
$grants$;
