-- A worker attached, or sent a heartbeat: it is in the table of workers, and its model in the registry. KEYS[1] is
-- the registry's `meta` key. Sent whole each time, so that a Redis that lost the table has it again in a moment.
-- ARGV: worker id, session, model, stage, digest, model record, worker record, ms that a silent worker counts as live,
--       the model's stages, comma-separated
-- Reply: {'ok', 1 when an operator wants it drained, else 0} | {'refused', digest that is served, live workers that serve it}
local P = string.sub(KEYS[1], 1, -5)
local TIME = redis.call('TIME')
local NOW = TIME[1] * 1000 + math.floor(TIME[2] / 1000)
local worker, session, model, stage, digest = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local expiry, stages = tonumber(ARGV[8]), ARGV[9]
if not (worker and session and model and stage and digest and expiry and stages) then
  return redis.error_reply('ERR worker_seen: bad arguments')
end
local function live_key(name) return P .. 'live:' .. model .. ':' .. name end

local served = redis.call('HGET', P .. 'digests', model)
if served and served ~= digest then
  local others = 0
  local known = redis.call('HGET', P .. 'stages', model) or stages
  for name in string.gmatch(known, '[^,]+') do
    others = others + redis.call('ZCOUNT', live_key(name), NOW - expiry, '+inf')
    local own = redis.call('ZSCORE', live_key(name), worker)
    if own and tonumber(own) >= NOW - expiry then others = others - 1 end
  end
  if others > 0 then return { 'refused', served, others } end
end

local new = redis.call('EXISTS', P .. 'worker:' .. worker) == 0
if served ~= digest or redis.call('HEXISTS', P .. 'models', model) == 0 then
  redis.call('HSET', P .. 'digests', model, digest)
  redis.call('HSET', P .. 'stages', model, stages)
  redis.call('HSET', P .. 'models', model, ARGV[6])
  new = true
end
redis.call('HSET', P .. 'worker:' .. worker, 'record', ARGV[7], 'session', session, 'model', model, 'stage', stage)
redis.call('PEXPIRE', P .. 'worker:' .. worker, expiry)
redis.call('ZADD', P .. 'seen', NOW, worker)
redis.call('ZADD', live_key(stage), NOW, worker)
redis.call('ZREMRANGEBYSCORE', P .. 'seen', '-inf', NOW - 10 * expiry)
redis.call('ZREMRANGEBYSCORE', live_key(stage), '-inf', NOW - 10 * expiry)
if new then redis.call('PUBLISH', P .. 'reg', model) end
return { 'ok', redis.call('HEXISTS', P .. 'worker:' .. worker, 'drain') }
