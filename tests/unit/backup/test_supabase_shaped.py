from __future__ import annotations

import time

import pytest
from backup_helpers import execute, value

from oxherd.backup import catalogue, restore, runs, sealing, tools
from oxherd.backup.storage import open_storage
from oxherd.embedded.postgres import Postgres
from oxherd.errors import UsageError
from oxherd.ops import restore as restoring

# As in a project of Supabase's: roles, schemas, an extension in `extensions`, and what only its servers can take.
PROJECT = """
    create role supabase_admin; create role supabase_auth_admin; create role anon; create role authenticated;
    create role service_role bypassrls;
    create schema extensions; create schema auth authorization supabase_auth_admin; create schema vault;
    create schema realtime; create schema graphql;
    create extension citext with schema extensions;
    create table auth.users (id uuid primary key default gen_random_uuid(), email text);
    create table auth.schema_migrations (version text); insert into auth.schema_migrations values ('1');
    alter table auth.users owner to supabase_auth_admin;
    create function auth.uid() returns uuid language sql stable as
        $$ select nullif(current_setting('request.jwt.claim.sub', true), '')::uuid $$;
    create table vault.secrets (secret text); insert into vault.secrets values ('theirs');
    create table public.profiles (
        id uuid primary key references auth.users (id), name extensions.citext unique
    );
    alter table public.profiles enable row level security;
    create policy own on public.profiles for select to authenticated using (id = auth.uid());
    grant select on public.profiles to anon, authenticated;
    grant usage on schema public to anon, authenticated, service_role;
    insert into auth.users (email) select 'u' || i || '@example.com' from generate_series(1, 50) i;
    insert into public.profiles select id, email from auth.users;
    create function extensions.watch() returns event_trigger language plpgsql as $$ begin end $$;
    create event trigger pgrst_watch on ddl_command_end execute function extensions.watch();
    create publication supabase_realtime for table public.profiles;
"""


async def test_a_project_of_supabases_is_proven_on_a_plain_postgres_with_its_users_and_policies(configured):
    with Postgres(config={"fsync": "off"}) as server, Postgres(config={"fsync": "off"}) as plain:
        await execute(server.url, PROJECT)
        settings = configured(DATABASE_URL=server.url)
        made = await runs.take(settings, None, with_queue=False)
        assert made.database["supabase"]
        assert set(made.tables) == {"auth.users", "public.profiles"}
        report = await runs.prove(settings, None)
        assert report.ok, report.checks
        assert catalogue.read(open_storage(settings), runs.ring_of(settings), now=time.time()).entries[0].is_verified

        opened = restore.unlock(made, open_storage(settings), sealing.identities_of(settings.backup_identity))
        target = await restoring.look(settings, None)
        with pytest.raises(UsageError, match="can't be swapped"):
            restoring.plan(opened, target, restoring.Outcome(), table=None)

        filled = await restore.fill(opened, tools.address_of(plain.url))
        assert "authenticated" in filled.roles
        assert await value(plain.url, "select count(*) from profiles join auth.users using (id)") == 50
        assert await value(plain.url, "select count(*) from auth.schema_migrations") == 0
        assert await value(plain.url, "select to_regclass('vault.secrets')") is None
        assert (
            await value(plain.url, "select roles::text from pg_policies where policyname = 'own'") == "{authenticated}"
        )
