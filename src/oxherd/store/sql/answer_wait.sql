-- Answer a question; the first answer wins; migration 008 has the function.
-- $1 request: a JSON object.
select oxherd.answer_wait($1::json)
