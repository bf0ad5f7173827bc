-- Runs and their steps.
-- Collation "C" where a column is a key: cheaper to index, and `id like 'agent-jobs/42@%'` (all runs of one job id)
-- is answered by the primary key.

create table oxherd.runs (
    id            text collate "C" primary key,  -- <queue>/<job id>@<enqueued ms>
    queue         text collate "C" not null,
    job_id        text collate "C" not null,
    name          text not null,
    tenant        text,
    status        text collate "C" not null,  -- running, completed, failed, retrying, delayed, handed_back, parked
    fence         bigint not null,            -- the attempt's fencing number: lower ones are refused
    attempt       int not null,
    attempts      int not null,
    worker        text not null,
    input         text not null,              -- as the producer wrote it: perhaps no JSON
    output        json,                       -- json, not jsonb: kept to the byte, \u0000 included
    error         text,
    kind          text,
    stack         text,
    enqueued_at   timestamptz,
    started_at    timestamptz,
    finished_at   timestamptz,
    model_calls   int not null,
    input_tokens  bigint not null,
    output_tokens bigint not null,
    cost_usd      numeric                     -- null: unknown, which is not 0
);

create index runs_recent on oxherd.runs (queue, started_at desc);
-- Nearly all runs end completed, and runs_recent finds those: leaving them out keeps this one small and writes cheap.
create index runs_by_status on oxherd.runs (queue, status, started_at desc) where status <> 'completed';

-- No foreign key: a first attempt's steps are written before its run is.
create table oxherd.steps (
    run_id        text collate "C" not null,
    key           text collate "C" not null,
    seq           bigint generated always as identity,  -- the order in which steps finished
    kind          text not null,                        -- step, model or tool
    inputs        text not null,
    output        json not null,
    fence         bigint not null,                      -- of the attempt that ran it
    started_at    timestamptz not null,
    ms            double precision not null,
    place         text collate "C",                     -- such as 3 or 3.1; null: ran beside others, in any order
    model_calls   int,                                  -- null: no paid call; the three below likewise
    input_tokens  bigint,
    output_tokens bigint,
    cost_usd      numeric,
    primary key (run_id, key)
);

-- On with no policy: nobody but the owner and roles that bypass it (service_role) sees a row, whatever is granted.
alter table oxherd.runs enable row level security;
alter table oxherd.steps enable row level security;

do $grants$
begin
    if exists (select from pg_catalog.pg_roles where rolname = 'service_role') then
        grant select, insert, update, delete on oxherd.runs, oxherd.steps to service_role;
    end if;
end
$grants$;
