-- Customers' credentials, each in an envelope that only workers with the key can open; docs/vault.md has its format.

create table oxherd.credentials (
    tenant     text collate "C" not null,  -- empty: of no tenant
    name       text collate "C" not null check (name <> ''),
    envelope   text not null,
    key_id     text collate "C" not null generated always as (split_part(envelope, '.', 2)) stored,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),  -- when the value was last put; a new key leaves it
    primary key (tenant, name),
    -- Nothing but an envelope can be stored here, least of all a value in the clear.
    check (envelope ~ '^oxherd1\.[0-9a-f]{8}\.[1-9][0-9]*\.[A-Za-z0-9_-]+$')
);

create index credentials_by_key on oxherd.credentials (key_id);

alter table oxherd.credentials enable row level security;

-- Each function takes one JSON object, so that both stores run the very same statements.

-- Store an envelope under a tenant and a name, in place of one that is there.
--   request {"tenant", "name", "envelope"}; returns {"created": bool}
create function oxherd.put_credential(request json) returns json
language sql
set search_path = ''
as $function$
    insert into oxherd.credentials as stored (tenant, name, envelope)
    values (request ->> 'tenant', request ->> 'name', request ->> 'envelope')
    on conflict (tenant, name) do update set envelope = excluded.envelope, updated_at = now()
    returning json_build_object('created', stored.xmax = 0)
$function$;

-- One envelope.
--   request {"tenant", "name"}; returns {"envelope": text | null}
create function oxherd.get_credential(request json) returns json
language sql stable
set search_path = ''
as $function$
    select json_build_object('envelope', (
        select c.envelope
        from oxherd.credentials c
        where c.tenant = request ->> 'tenant' and c.name = request ->> 'name'
    ))
$function$;

-- Forget one.
--   request {"tenant", "name"}; returns {"removed": bool}
create function oxherd.remove_credential(request json) returns json
language sql
set search_path = ''
as $function$
    with gone as (
        delete from oxherd.credentials c
        where c.tenant = request ->> 'tenant' and c.name = request ->> 'name'
        returning 1
    )
    select json_build_object('removed', exists (select from gone))
$function$;

-- A page, by tenant and name.
--   request {"limit": int, "after": [tenant, name] | null, "tenant": text | null, "but_key": text | null}
--           tenant: of this one only; but_key: those that another key sealed
--   returns [{"tenant", "name", "envelope", "key_id", "created_at", "updated_at"}], times in ms
create function oxherd.list_credentials(request json) returns json
language sql stable
set search_path = ''
as $function$
    select coalesce(json_agg(json_build_object(
        'tenant', page.tenant, 'name', page.name, 'envelope', page.envelope, 'key_id', page.key_id,
        'created_at', (extract(epoch from page.created_at) * 1000)::bigint,
        'updated_at', (extract(epoch from page.updated_at) * 1000)::bigint
    ) order by page.tenant, page.name), json_build_array())
    from (
        select c.*
        from oxherd.credentials c
        where (c.tenant, c.name) > (coalesce(request -> 'after' ->> 0, ''), coalesce(request -> 'after' ->> 1, ''))
            and (request ->> 'tenant' is null or c.tenant = request ->> 'tenant')
            and (request ->> 'but_key' is null or c.key_id <> request ->> 'but_key')
        order by c.tenant, c.name
        limit (request ->> 'limit')::int
    ) as page
$function$;

-- How many each key sealed.
--   request {}; returns {key id: number}
create function oxherd.count_credentials(request json) returns json
language sql stable
set search_path = ''
as $function$
    select coalesce(json_object_agg(counted.key_id, counted.number), json_build_object())
    from (select c.key_id, count(*) as number from oxherd.credentials c group by c.key_id) as counted
$function$;

-- Replace envelopes, each only where it is still the one that was read: a value that was put meanwhile stays.
--   request [{"tenant", "name", "old", "new"}], none twice; returns {"swapped": number}
create function oxherd.swap_credentials(request json) returns json
language sql
set search_path = ''
as $function$
    with swapped as (
        update oxherd.credentials c
        set envelope = given.new
        from json_to_recordset(request) as given (tenant text, name text, old text, new text)
        where c.tenant = given.tenant and c.name = given.name and c.envelope = given.old
        returning 1
    )
    select json_build_object('swapped', (select count(*) from swapped))
$function$;

revoke execute on function
    oxherd.put_credential(json), oxherd.get_credential(json), oxherd.remove_credential(json),
    oxherd.list_credentials(json), oxherd.count_credentials(json), oxherd.swap_credentials(json)
from public;

do $grants$
begin
    if exists (select from pg_catalog.pg_roles where rolname = 'service_role') then
        grant select, insert, update, delete on oxherd.credentials to service_role;
        grant execute on function
            oxherd.put_credential(json), oxherd.get_credential(json), oxherd.remove_credential(json),
            oxherd.list_credentials(json), oxherd.count_credentials(json), oxherd.swap_credentials(json)
        to service_role;
    end if;
end
$grants$;
