"""What a database holds, as a restored copy must hold it: rows, checksums, sequences, constraints, policies."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from oxherd.embedded.postgres import quoted

# Supabase's own, which it makes anew in every project; its `auth` and `storage` hold users' rows and are kept.
# Source: supabase/cli, pkg/migration/dump.go (internal schemas).
MANAGED = (
    "_analytics", "_realtime", "_supavisor", "cron", "dbdev", "etl", "extensions", "graphql", "graphql_public", "net",
    "pgbouncer", "pgmq", "pgsodium", "pgsodium_masks", "pgtle", "realtime", "repack", "supabase_functions",
    "supabase_migrations", "tiger", "tiger_data", "topology", "vault",
)  # fmt: skip
# Supabase's own bookkeeping inside the schemas that are kept.
UNWANTED_ROWS = ("auth.schema_migrations", "storage.migrations")
EXTENSION_MEMBER = "exists (select from pg_catalog.pg_depend d where d.objid = {oid} and d.deptype = 'e')"
# The text of a row must not depend on who asks.
SAME_TEXT = (
    "set local datestyle = 'ISO, YMD'; set local intervalstyle = 'postgres'; set local timezone = 'UTC'; "
    "set local extra_float_digits = 3; set local bytea_output = 'hex'; set local xmlbinary = 'base64'; "
    "set local search_path = ''; set local row_security = off; set local statement_timeout = 0; "
    "set local lock_timeout = '60s'; set local idle_in_transaction_session_timeout = 0"
)

# Each gives rows of (name, value); a restored database must give the same.
CATALOG: Mapping[str, str] = {
    "constraints": """
        select c.conrelid::regclass::text || ' ' || c.conname, pg_catalog.pg_get_constraintdef(c.oid)
            || case when c.convalidated then '' else ' (not validated)' end
        from pg_catalog.pg_constraint c join pg_catalog.pg_class r on r.oid = c.conrelid
        join pg_catalog.pg_namespace n on n.oid = r.relnamespace
        where c.contype <> 'n' and {wanted} and not {member_r}""",
    "indexes": """
        select i.indexrelid::regclass::text, pg_catalog.pg_get_indexdef(i.indexrelid)
        from pg_catalog.pg_index i join pg_catalog.pg_class r on r.oid = i.indrelid
        join pg_catalog.pg_namespace n on n.oid = r.relnamespace
        where r.relkind in ('r', 'p', 'm') and {wanted} and not {member_r}""",
    "row security": """
        select r.oid::regclass::text,
            (case when relrowsecurity then 'on' else 'off' end)
            || (case when relforcerowsecurity then ', forced' else '' end)
        from pg_catalog.pg_class r join pg_catalog.pg_namespace n on n.oid = r.relnamespace
        where r.relkind in ('r', 'p') and {wanted} and not {member_r}""",
    "policies": """
        select r.oid::regclass::text || ' ' || p.polname, concat_ws(' | ', p.polcmd::text, p.polpermissive::text,
            (select string_agg(coalesce(a.rolname, 'public'), ',' order by coalesce(a.rolname, 'public') collate "C")
                from unnest(p.polroles) role left join pg_catalog.pg_roles a on a.oid = role),
            pg_catalog.pg_get_expr(p.polqual, p.polrelid), pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid))
        from pg_catalog.pg_policy p join pg_catalog.pg_class r on r.oid = p.polrelid
        join pg_catalog.pg_namespace n on n.oid = r.relnamespace where {wanted}""",
    "triggers": """
        select r.oid::regclass::text || ' ' || t.tgname, t.tgenabled::text || ' ' || pg_catalog.pg_get_triggerdef(t.oid)
        from pg_catalog.pg_trigger t join pg_catalog.pg_class r on r.oid = t.tgrelid
        join pg_catalog.pg_namespace n on n.oid = r.relnamespace where not t.tgisinternal and {wanted}""",
    "functions": """
        select f.oid::regprocedure::text, md5(pg_catalog.pg_get_functiondef(f.oid))
        from pg_catalog.pg_proc f join pg_catalog.pg_namespace n on n.oid = f.pronamespace
        where f.prokind in ('f', 'p') and {wanted} and not {member_f}""",
    "views": """
        select r.oid::regclass::text, md5(pg_catalog.pg_get_viewdef(r.oid))
        from pg_catalog.pg_class r join pg_catalog.pg_namespace n on n.oid = r.relnamespace
        where r.relkind in ('v', 'm') and {wanted} and not {member_r}""",
    "columns": """
        select r.oid::regclass::text || '.' || a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod)
            || case when a.attnotnull then ' not null' else '' end || a.attidentity::text || a.attgenerated::text
        from pg_catalog.pg_attribute a join pg_catalog.pg_class r on r.oid = a.attrelid
        join pg_catalog.pg_namespace n on n.oid = r.relnamespace
        where a.attnum > 0 and not a.attisdropped and r.relkind in ('r', 'p') and {wanted} and not {member_r}""",
}

# The first superuser (10) owns things without an entry in pg_shdepend.
ROLES = """
    with here as (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
    select rolname from pg_catalog.pg_roles where oid = 10
    union select a.rolname from pg_catalog.pg_shdepend s join pg_catalog.pg_roles a on a.oid = s.refobjid, here
    where s.refclassid = 'pg_catalog.pg_authid'::regclass and s.deptype in ('o', 'a', 'r')
        and (s.dbid = here.oid or s.classid = 'pg_catalog.pg_database'::regclass and s.objid = here.oid)
        and a.rolname !~ '^pg_'
    union select a.rolname from pg_catalog.pg_db_role_setting s join pg_catalog.pg_roles a on a.oid = s.setrole, here
    where s.setdatabase = here.oid
    order by 1"""

# What a database has beside its contents, which no pg_restore without --create brings back.
DATABASE = """
    select pg_catalog.jsonb_build_object(
        'row', pg_catalog.to_jsonb(d), 'owner', pg_catalog.pg_get_userbyid(d.datdba),
        'comment', pg_catalog.shobj_description(d.oid, 'pg_database'),
        'settings', (select coalesce(jsonb_agg(jsonb_build_array(a.rolname, s.setconfig)), '[]')
            from pg_catalog.pg_db_role_setting s left join pg_catalog.pg_roles a on a.oid = s.setrole
            where s.setdatabase = d.oid and (s.setrole = 0 or a.rolname is not null)),
        'grants', (select jsonb_agg(jsonb_build_array(a.rolname, g.privilege_type, g.is_grantable))
            from pg_catalog.aclexplode(d.datacl) g left join pg_catalog.pg_roles a on a.oid = g.grantee)
    )::text from pg_catalog.pg_database d where d.datname = $1"""

# Sequences that are a table's own, and those that its defaults use.
SEQUENCES_OF = """
    select n.nspname || '.' || r.relname as table, m.nspname as schema, s.relname as name, bool_or(u.own) as own
    from (
        select refobjid as table, objid as sequence, true as own from pg_catalog.pg_depend
        where classid = 'pg_catalog.pg_class'::regclass and refclassid = classid and deptype in ('a', 'i')
        union select a.adrelid, d.refobjid, false
        from pg_catalog.pg_attrdef a join pg_catalog.pg_depend d on d.objid = a.oid
        where d.classid = 'pg_catalog.pg_attrdef'::regclass and d.refclassid = 'pg_catalog.pg_class'::regclass
    ) u join pg_catalog.pg_class r on r.oid = u.table join pg_catalog.pg_namespace n on n.oid = r.relnamespace
    join pg_catalog.pg_class s on s.oid = u.sequence and s.relkind = 'S'
    join pg_catalog.pg_namespace m on m.oid = s.relnamespace
    where r.relkind = 'r' and {wanted} group by 1, 2, 3 order by 1, 2, 3"""

# Functions of extensions, so that a server without one can be given stand-ins; only those of built-in types.
STAND_INS = """
    select e.extname, n.nspname, f.proname, pg_catalog.pg_get_function_identity_arguments(f.oid) as arguments,
        pg_catalog.pg_get_function_result(f.oid) as result
    from pg_catalog.pg_extension e
    join pg_catalog.pg_depend d on d.refobjid = e.oid and d.deptype = 'e' and d.classid = 'pg_catalog.pg_proc'::regclass
    join pg_catalog.pg_proc f on f.oid = d.objid join pg_catalog.pg_namespace n on n.oid = f.pronamespace
    where f.prokind = 'f' and not f.proretset and e.extname <> 'plpgsql' and f.prorettype < 16384 and f.oid >= 16384
        and not exists (select from unnest(f.proargtypes) type where type >= 16384)
        and not exists (select from unnest(array_append(f.proargtypes::oid[], f.prorettype)) type
            where type in (2281, 2276, 2278, 2279))
        and e.extname in ('pgcrypto', 'uuid-ossp')
    order by 1, 2, 3, 4"""


@dataclass(frozen=True, slots=True)
class Scope:
    """Which schemas count.

    Attributes:
        only: these; all where it is empty.
        without: but these.
    """

    only: Sequence[str] = ()
    without: Sequence[str] = ()

    @property
    def condition(self) -> str:
        """As SQL, of the namespace `n`."""
        parts = ["n.nspname !~ '^pg_'", "n.nspname <> 'information_schema'"]
        if self.only:
            parts.append(f"n.nspname in ({', '.join(map(literal, self.only))})")
        if self.without:
            parts.append(f"n.nspname not in ({', '.join(map(literal, self.without))})")
        return " and ".join(parts)


async def gather(connection: Any, scope: Scope, *, seed: int) -> dict[str, Any]:
    """Read it all, in the transaction that is open; the dump's own where it runs in the dump's snapshot.

    Parameters:
        connection: of asyncpg, in a transaction.
        scope: which schemas.
        seed: of the checksums, so that nobody can guess a row from one.

    Returns:
        tables ({name: [rows, checksum]}), sequences ({name: [earliest, latest place]}), sequences_of ({table: [[schema,
        name, whether it is its own]]}), extensions, roles, stand_ins, database (see `database`), and the CATALOG's.
    """
    await connection.execute(SAME_TEXT)
    facts: dict[str, Any] = {"seed": seed, "tables": {}, "sequences_of": {}}
    for name, sql in (await _relations(connection, scope, "r")).items():
        rows, checksum = await _summed(connection, sql, seed)
        facts["tables"][name] = [rows, checksum]
    for table, *sequence in await connection.fetch(_completed(SEQUENCES_OF, scope)):
        facts["sequences_of"].setdefault(table, []).append(sequence)
    facts["sequences"] = {name: [place, place] for name, place in (await sequences(connection, scope)).items()}
    for name, query in CATALOG.items():
        rows = await connection.fetch(_completed(query, scope))
        facts[name] = {row[0]: row[1] for row in rows}
    facts["extensions"] = {
        row["extname"]: row["nspname"]
        for row in await connection.fetch(
            "select extname, nspname from pg_catalog.pg_extension e "
            "join pg_catalog.pg_namespace n on n.oid = e.extnamespace"
        )
    }
    facts["roles"] = [row[0] for row in await connection.fetch(ROLES)]
    facts["stand_ins"] = [list(row.values()) for row in await connection.fetch(STAND_INS)]
    facts["database"] = await database(connection, await connection.fetchval("select pg_catalog.current_database()"))
    return facts


async def database(connection: Any, name: str) -> dict[str, Any]:
    """What a database has beside its contents: row (of pg_database), owner, comment, settings, grants (None: usual)."""
    found: dict[str, Any] = orjson.loads(await connection.fetchval(DATABASE, name))
    return found


async def sequences(connection: Any, scope: Scope) -> dict[str, list[Any]]:
    """Where each sequence is now: its last value, and whether that was given out. No snapshot holds one still."""
    found = {}
    for name, sql in (await _relations(connection, scope, "S")).items():
        row = await connection.fetchrow(f"select last_value, is_called from {sql}")
        found[name] = [row["last_value"], row["is_called"]]
    return found


COMPARED = ("tables", "sequences", *CATALOG)


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any], *, skip: Sequence[str] = ()) -> list[str]:
    """What a restored database lacks or has otherwise, a line for each; none where it is the same.

    Parameters:
        wanted: the facts of the backup.
        found: those of the restored database.
        skip: kinds that are not compared.
    """
    lines: list[str] = []
    for kind in COMPARED:
        if kind in skip:
            continue
        ours, theirs = wanted.get(kind, {}), found.get(kind, {})
        same = _between if kind == "sequences" else operator.eq
        changed = [name for name in sorted(ours.keys() | theirs.keys()) if not same(ours.get(name), theirs.get(name))]
        lines += [_difference(kind, name, ours.get(name), theirs.get(name)) for name in changed]
    return lines


def _between(ours: Any, theirs: Any) -> bool:
    """Whether a sequence is where it was at some moment while the dump ran."""
    if ours is None or theirs is None:
        return False
    low, high = sorted(ours)
    return all(low <= place <= high for place in theirs)


def _difference(kind: str, name: str, ours: Any, theirs: Any) -> str:
    if theirs is None:
        return f"{kind}: {name} is missing"
    if ours is None:
        return f"{kind}: {name} is there, and was not in the backup"
    if kind == "tables":
        same = ours[0] == theirs[0]
        return f"tables: {name} has other rows" if same else f"tables: {name} has {theirs[0]} rows, not {ours[0]}"
    return f"{kind}: {name} differs"


async def _relations(connection: Any, scope: Scope, kind: str) -> dict[str, str]:
    """Each by its name as people write it, and as SQL has it."""
    rows = await connection.fetch(
        "select n.nspname, r.relname from pg_catalog.pg_class r "
        "join pg_catalog.pg_namespace n on n.oid = r.relnamespace "
        f"where r.relkind = '{kind}' and r.relpersistence <> 't' and {scope.condition} "
        f"and not {EXTENSION_MEMBER.format(oid='r.oid')} order by 1, 2"
    )
    names = {f"{schema}.{name}": f"{quoted(schema)}.{quoted(name)}" for schema, name in rows}
    return {name: sql for name, sql in names.items() if name not in UNWANTED_ROWS}


async def _summed(connection: Any, sql: str, seed: int) -> tuple[int, str]:
    """Rows and their checksum: a sum of 64-bit hashes, which does not depend on their order."""
    row = await connection.fetchrow(
        "select count(*) as rows, "
        f"coalesce(sum(pg_catalog.hashtextextended(t::text, {seed})::numeric), 0)::text as sum from only {sql} t"
    )
    return row["rows"], row["sum"]


def _completed(query: str, scope: Scope) -> str:
    return query.format(
        wanted=scope.condition,
        member_r=EXTENSION_MEMBER.format(oid="r.oid"),
        member_f=EXTENSION_MEMBER.format(oid="f.oid"),
    )


def literal(text: str) -> str:
    """A string in SQL."""
    return "'" + text.replace("'", "''") + "'"
