-- The schema, and the table that remembers which migrations ran. Runs before every migration; changes nothing twice.
-- Only the owner and service_role reach anything in the schema: no usage for anon, authenticated or public.

create schema if not exists oxherd;

create table if not exists oxherd.migrations (
    number     int primary key,
    name       text not null,
    checksum   text not null,  -- SHA-256 of the file, hex: an edited migration is noticed
    applied_at timestamptz not null default now()
);

alter table oxherd.migrations enable row level security;

do $grants$
begin
    if exists (select from pg_catalog.pg_roles where rolname = 'service_role') then
        grant usage on schema oxherd to service_role;
        grant select on oxherd.migrations to service_role;
    end if;
end
$grants$;
