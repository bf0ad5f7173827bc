-- One question; migration 008 has the function.
-- $1 request: a JSON object.
select oxherd.get_wait($1::json)
