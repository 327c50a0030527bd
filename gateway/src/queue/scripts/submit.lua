-- Accepts a job. Safe to repeat with the same id.
-- ARGV: id, tenant, model, stages, rows, boost ms, timeout ms, request, traceparent, idempotency hash or '',
--       request hash, most jobs that may wait in the pool
-- Reply: {'created' | 'existed' | 'conflict' | 'full', id}
local id, tenant, model, stages = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local rows, boost, timeout, limit = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[12])
local idem, hash = ARGV[10], ARGV[11]
local stage = string.match(stages or '', '^[^,]+')
if not (id and tenant and model and stage and rows and boost and timeout and limit) then
  return redis.error_reply('ERR submit: bad arguments')
end

if redis.call('EXISTS', P .. 'j:' .. id) == 1 then return { 'created', id } end
local idem_key = P .. 'idem:' .. tenant .. ':' .. idem
if idem ~= '' then
  local known = redis.call('GET', idem_key)
  if known then
    local known_id, known_hash = string.match(known, '^(%S+) (%S+)$')
    return { known_hash == hash and 'existed' or 'conflict', known_id }
  end
end
if redis.call('ZCARD', P .. 'wait:' .. model .. ':' .. stage) >= limit then return { 'full', id } end

local job = {
  id = id, state = 'queued', tenant = tenant, model = model, stage = stage, score = NOW - boost,
}
redis.call('HSET', P .. 'j:' .. id,
  'state', 'queued', 'tenant', tenant, 'model', model, 'stages', stages, 'stage', stage, 'rows', rows,
  'score', job.score, 'request', ARGV[8], 'traceparent', ARGV[9], 'attempts', 0, 'crashes', 0, 'created', NOW,
  'updated', NOW, 'queued', NOW, 'deadline', NOW + timeout, 'ver', 1)
if idem ~= '' then
  redis.call('SET', idem_key, id .. ' ' .. hash)
  redis.call('HSET', P .. 'j:' .. id, 'idem', idem)
end
redis.call('ZADD', P .. 'jobs:' .. tenant, 0, id)
redis.call('ZADD', P .. 'deadline', NOW + timeout, id)
enqueue(job)
return { 'created', id }
