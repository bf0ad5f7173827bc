-- Replace envelopes that are still the ones that were read; migration 004 has the function.
-- $1 request: a JSON array
select oxherd.swap_credentials($1::json)
