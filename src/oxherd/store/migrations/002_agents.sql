-- Agents that the product's own app defines and edits; jobs name them: {"agent": "support", "input": "…"}.

create table oxherd.agents (
    name       text collate "C" primary key,
    definition jsonb not null check (jsonb_typeof(definition) = 'object'),
    version    int not null default 1,
    updated_at timestamptz not null default now()
);

alter table oxherd.agents enable row level security;

do $grants$
begin
    if exists (select from pg_catalog.pg_roles where rolname = 'service_role') then
        grant select, insert, update, delete on oxherd.agents to service_role;
    end if;
end
$grants$;
