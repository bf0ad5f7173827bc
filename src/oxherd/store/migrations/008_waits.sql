-- Questions that jobs wait for: asked once, answered once, by a person or by the clock.
-- The database's clock alone says when a question has expired: workers' and answerers' may differ from it.

create table oxherd.waits (
    run_id      text collate "C" not null,
    key         text collate "C" not null,         -- the step that the answer will be
    id          text collate "C" not null unique,  -- what people call it, made from run_id and key
    nonce       text not null,                     -- in its links: those of an earlier asking answer nothing
    queue       text collate "C" not null,
    job_id      text collate "C" not null,
    job         text not null,                     -- the job's name
    tenant      text,
    inputs      text not null,                     -- digest of what was asked: an answer is for this and nothing else
    about       json,                              -- what the person is shown
    state       text collate "C" not null check (state in ('open', 'answered', 'expired', 'withdrawn')),
    asked_at    timestamptz not null,
    expires_at  timestamptz not null,
    approved    boolean,
    value       json,
    message     text,
    answered_by text,
    answered_at timestamptz,
    primary key (run_id, key),
    check ((state = 'answered') = (approved is not null and answered_by is not null and answered_at is not null))
);

create index waits_open on oxherd.waits (queue, expires_at) where state = 'open';
create index waits_recent on oxherd.waits (queue, asked_at desc);

alter table oxherd.waits enable row level security;

-- A row as the functions below give it, times in ms. One whose time has passed is expired, whoever notices first.
create function oxherd.wait_shown(stored oxherd.waits) returns json
language sql stable
set search_path = ''
as $function$
    select json_build_object(
        'run_id', stored.run_id, 'key', stored.key, 'id', stored.id, 'nonce', stored.nonce, 'queue', stored.queue,
        'job_id', stored.job_id, 'job', stored.job, 'tenant', stored.tenant, 'inputs', stored.inputs,
        'about', stored.about::text,
        'state', case when stored.state = 'open' and stored.expires_at <= clock_timestamp() then 'expired'
            else stored.state end,
        'asked_at', (extract(epoch from stored.asked_at) * 1000)::bigint,
        'expires_at', (extract(epoch from stored.expires_at) * 1000)::bigint,
        'left_ms', greatest(ceil(extract(epoch from stored.expires_at - clock_timestamp()) * 1000), 0)::bigint,
        'approved', stored.approved, 'value', stored.value::text, 'message', coalesce(stored.message, ''),
        'by', coalesce(stored.answered_by, ''),
        'answered_at', (extract(epoch from stored.answered_at) * 1000)::bigint
    )
$function$;

-- Ask, or look what became of it: the first asking counts, with its text and its time. Safe to repeat.
--   request {"run_id", "key", "id", "nonce", "queue", "job_id", "job", "tenant", "inputs", "about": text,
--           "timeout_ms": int, "fence": int, "attempt_started_at": ms}
--   returns {"refused": true} where a later attempt has begun; else {"refused": false, "created": bool, "wait": {…}}
-- A question that was withdrawn, because its job was gone, is asked anew.
create function oxherd.open_wait(request json) returns json
language plpgsql
set search_path = ''
as $function$
declare
    stored  oxherd.waits;
    created boolean;
begin
    if exists (
        select from oxherd.runs r
        where r.id = request ->> 'run_id' and not oxherd.fence_holds(
            r, (request ->> 'fence')::bigint, oxherd.time_of((request ->> 'attempt_started_at')::bigint)
        )
    ) then
        return json_build_object('refused', true);
    end if;

    insert into oxherd.waits as w (
        run_id, key, id, nonce, queue, job_id, job, tenant, inputs, about, state, asked_at, expires_at
    ) values (
        request ->> 'run_id', request ->> 'key', request ->> 'id', request ->> 'nonce', request ->> 'queue',
        request ->> 'job_id', request ->> 'job', request ->> 'tenant', request ->> 'inputs',
        (request ->> 'about')::json, 'open', clock_timestamp(),
        clock_timestamp() + (request ->> 'timeout_ms')::bigint * interval '1 millisecond'
    )
    on conflict (run_id, key) do update set
        nonce = excluded.nonce, inputs = excluded.inputs, about = excluded.about, state = 'open',
        asked_at = excluded.asked_at, expires_at = excluded.expires_at
    where w.state = 'withdrawn'
    returning w.* into stored;
    created := found;

    if not created then
        update oxherd.waits w
        set state = 'expired'
        where w.run_id = request ->> 'run_id' and w.key = request ->> 'key'
            and w.state = 'open' and w.expires_at <= clock_timestamp();
        select * into stored
        from oxherd.waits w
        where w.run_id = request ->> 'run_id' and w.key = request ->> 'key';
    end if;
    return json_build_object('refused', false, 'created', created, 'wait', oxherd.wait_shown(stored));
end
$function$;

-- Answer. The first answer wins, and none comes after the time is over.
--   request {"id", "nonce": text | null, "approved": bool, "value": text | null, "message", "by"}; nonce: of this
--           asking only
--   returns {"won": bool, "wait": {…} | null}: the row as it is now, null where there is none
create function oxherd.answer_wait(request json) returns json
language plpgsql
set search_path = ''
as $function$
declare
    stored oxherd.waits;
    won    boolean;
begin
    update oxherd.waits w
    set state = 'answered', approved = (request ->> 'approved')::boolean, value = (request ->> 'value')::json,
        message = request ->> 'message', answered_by = request ->> 'by', answered_at = clock_timestamp()
    where w.id = request ->> 'id' and coalesce(w.nonce = request ->> 'nonce', true)
        and w.state = 'open' and w.expires_at > clock_timestamp()
    returning w.* into stored;
    won := found;
    if not won then
        select * into stored
        from oxherd.waits w
        where w.id = request ->> 'id' and coalesce(w.nonce = request ->> 'nonce', true);
    end if;
    return json_build_object('won', won, 'wait', case when found then oxherd.wait_shown(stored) end);
end
$function$;

-- One question.
--   request {"id"}; returns {"wait": {…} | null}
create function oxherd.get_wait(request json) returns json
language sql stable
set search_path = ''
as $function$
    select json_build_object('wait', (select oxherd.wait_shown(w) from oxherd.waits w where w.id = request ->> 'id'))
$function$;

-- Questions of a queue: the open ones, the most urgent first; or those of another state, the newest first.
--   request {"queue", "state", "limit": int}; returns [{…}]
create function oxherd.list_waits(request json) returns json
language sql stable
set search_path = ''
as $function$
    select coalesce(json_agg(oxherd.wait_shown(page.w) order by page.place), json_build_array())
    from (
        select
            w,
            row_number() over (order by case when request ->> 'state' = 'open' then w.expires_at end, w.asked_at desc)
                as place
        from oxherd.waits w
        where w.queue = request ->> 'queue'
            and case request ->> 'state'
                when 'open' then w.state = 'open' and w.expires_at > clock_timestamp()
                when 'expired' then w.state = 'expired' or (w.state = 'open' and w.expires_at <= clock_timestamp())
                else w.state = request ->> 'state'
            end
        order by place
        limit (request ->> 'limit')::int
    ) as page
$function$;

-- Close open questions whose jobs are gone.
--   request {"ids": [text]}; returns {"withdrawn": number}
create function oxherd.withdraw_waits(request json) returns json
language sql
set search_path = ''
as $function$
    with withdrawn as (
        update oxherd.waits w
        set state = 'withdrawn'
        where w.state = 'open' and w.id in (select json_array_elements_text(request -> 'ids'))
        returning 1
    )
    select json_build_object('withdrawn', (select count(*) from withdrawn))
$function$;

-- As in migration 007, and questions with them: what is run anew is asked anew. So is what was never kept as a step.
create or replace function oxherd.drop_steps(request json) returns json
language sql
set search_path = ''
as $function$
    with dropped as (
        delete from oxherd.steps s
        using oxherd.steps fork
        where fork.run_id = request ->> 'run_id' and fork.key = request ->> 'key'
            and s.run_id = fork.run_id
            and (s.seq >= fork.seq or starts_with(s.key, fork.key || '/'))
        returning s.run_id, s.key, s.seq
    ), asked_anew as (
        delete from oxherd.waits w
        where w.run_id in (select d.run_id from dropped d)
            and (
                w.key in (select d.key from dropped d)
                or not exists (select from oxherd.steps s where s.run_id = w.run_id and s.key = w.key)
            )
    )
    select json_build_object('dropped', coalesce(json_agg(d.key order by d.seq), json_build_array()))
    from dropped d
$function$;

revoke execute on function
    oxherd.wait_shown(oxherd.waits), oxherd.open_wait(json), oxherd.answer_wait(json), oxherd.get_wait(json),
    oxherd.list_waits(json), oxherd.withdraw_waits(json), oxherd.drop_steps(json)
from public;

do $grants$
begin
    if exists (select from pg_catalog.pg_roles where rolname = 'service_role') then
        grant select, insert, update, delete on oxherd.waits to service_role;
        grant execute on function
            oxherd.wait_shown(oxherd.waits), oxherd.open_wait(json), oxherd.answer_wait(json), oxherd.get_wait(json),
            oxherd.list_waits(json), oxherd.withdraw_waits(json), oxherd.drop_steps(json)
        to service_role;
    end if;
end
$grants$;
