-- Every version of an agent, so that a run goes on with the one it began with and can be understood years later.
-- The product's app edits oxherd.agents as before; versions are counted and kept here without its help.

create table oxherd.agent_versions (
    name       text collate "C" not null,
    version    int not null,
    definition jsonb not null,
    created_at timestamptz not null default now(),
    primary key (name, version)
);

alter table oxherd.agent_versions enable row level security;

-- Both with the owner's rights: those who edit agents need none on the versions, and can't rewrite history.

-- Numbers go on where they had stopped when an agent is deleted and made again. The row is locked by now, and each
-- statement of a volatile function sees what others have committed: two edits at once get two numbers.
create function oxherd.count_agent_version() returns trigger
language plpgsql security definer
set search_path = ''
as $function$
begin
    if tg_op = 'UPDATE' and new.name = old.name and new.definition = old.definition then
        new.version := old.version;
        return new;
    end if;
    select coalesce(max(v.version), 0) + 1 into new.version from oxherd.agent_versions v where v.name = new.name;
    new.updated_at := now();
    return new;
end
$function$;

create function oxherd.keep_agent_version() returns trigger
language plpgsql security definer
set search_path = ''
as $function$
begin
    insert into oxherd.agent_versions (name, version, definition)
    values (new.name, new.version, new.definition)
    on conflict (name, version) do nothing;  -- an edit that changed nothing
    return null;
end
$function$;

insert into oxherd.agent_versions (name, version, definition)
select name, version, definition from oxherd.agents;

create trigger count_version before insert or update on oxherd.agents
for each row execute function oxherd.count_agent_version();

create trigger keep_version after insert or update on oxherd.agents
for each row execute function oxherd.keep_agent_version();

revoke execute on function oxherd.count_agent_version(), oxherd.keep_agent_version() from public;

do $grants$
begin
    if exists (select from pg_catalog.pg_roles where rolname = 'service_role') then
        grant select on oxherd.agent_versions to service_role;
    end if;
end
$grants$;
