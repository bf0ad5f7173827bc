-- What operators and schedules did and what it came to: deploys, backups, restores, rotations, drills. The dashboard's
-- pages, the alert about old backups and the last measured RTO and RPO come from here.

create table oxherd.operations (
    id       bigint generated always as identity primary key,
    at       timestamptz not null default now(),  -- when it ended
    kind     text collate "C" not null,           -- such as backup, verify, restore, deploy, rotation, drill
    target   text not null,                       -- what it was done to: a backup's name, a service, a variable
    outcome  text collate "C" not null,           -- ok or failed
    seconds  double precision not null,           -- how long it took
    summary  json not null                        -- its figures, without secrets
);

create index operations_by_kind on oxherd.operations (kind, id desc);

alter table oxherd.operations enable row level security;

-- Write one.
--   request {"kind", "target", "outcome", "seconds", "summary"}; returns {"id": number}
create function oxherd.write_operation(request json) returns json
language sql
set search_path = ''
as $function$
    insert into oxherd.operations (kind, target, outcome, seconds, summary)
    values (
        request ->> 'kind', request ->> 'target', request ->> 'outcome', (request ->> 'seconds')::double precision,
        request -> 'summary'
    )
    returning json_build_object('id', id)
$function$;

-- A page of them, the newest first.
--   request {"kind": text, "before": id | null, "limit": int}; returns [{the columns, at in ms}]
create function oxherd.list_operations(request json) returns json
language sql stable
set search_path = ''
as $function$
    select coalesce(json_agg(json_build_object(
        'id', page.id, 'at', (extract(epoch from page.at) * 1000)::bigint, 'kind', page.kind, 'target', page.target,
        'outcome', page.outcome, 'seconds', page.seconds, 'summary', page.summary
    ) order by page.id desc), json_build_array())
    from (
        select o.*
        from oxherd.operations o
        where o.kind = request ->> 'kind' and o.id < coalesce((request ->> 'before')::bigint, 9223372036854775807)
        order by o.id desc
        limit (request ->> 'limit')::int
    ) as page
$function$;

revoke execute on function oxherd.write_operation(json), oxherd.list_operations(json) from public;

do $grants$
begin
    if exists (select from pg_catalog.pg_roles where rolname = 'service_role') then
        grant select, insert on oxherd.operations to service_role;
        grant execute on function oxherd.write_operation(json), oxherd.list_operations(json) to service_role;
    end if;
end
$grants$;
