-- Ask a question, or look what became of it; migration 008 has the function.
-- $1 request: a JSON object.
select oxherd.open_wait($1::json)
