-- Accepts a job. Safe to repeat with the same id.
-- ARGV: id, tenant, model, stages, rows, boost ms, timeout ms, request, traceparent, idempotency hash or '',
--       request hash, most jobs that may wait in the pool,
--       then for the whole shard: most bytes, submissions a second, burst,
--       then for a tenant without settings of its own: most jobs queued, most bytes, submissions a second, burst.
--       0 is no limit, but for the jobs that may wait.
-- Reply: {'created' | 'existed' | 'conflict' | 'full' | 'quota', id, which limit or '', the limit or '', ms to wait or 0}
local id, tenant, model, stages = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local rows, boost, timeout, limit = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[12])
local idem, hash = ARGV[10], ARGV[11]
local stage = string.match(stages or '', '^[^,]+')
for i = 13, 19 do limit = limit and tonumber(ARGV[i]) and limit end
if is_empty(id) or is_empty(tenant) or is_empty(model) or not (stage and rows and boost and timeout and limit)
  or (idem ~= '' and hash == '') then
  return redis.error_reply('ERR submit: bad arguments')
end
local function reply(outcome, of, which, value, wait)
  return { outcome, of, which or '', value and tostring(value) or '', math.ceil(wait or 0) }
end

if redis.call('EXISTS', P .. 'j:' .. id) == 1 then return reply('created', id) end
local idem_key = P .. 'idem:' .. tenant .. ':' .. idem
if idem ~= '' then
  local known = redis.call('GET', idem_key)
  if known then
    local known_id, known_hash = string.match(known, '^(%S+) (%S+)$')
    return reply(known_hash == hash and 'existed' or 'conflict', known_id)
  end
end

-- Submissions are spaced by 1/rate; `burst` of them may come at once. What is kept is when the next would be on time.
local function bucket(key, rate, burst)
  if rate <= 0 then return nil, 0 end
  local space, most = 1000 / rate, math.max(1, burst > 0 and burst or math.ceil(rate))
  -- A clock that was set back must not shut anybody out for longer than a full bucket takes.
  local due = math.min(math.max(number(redis.call('GET', P .. key)), NOW), NOW + most * space)
  return due + space, math.max(0, due - NOW - (most - 1) * space)
end
local bytes = #ARGV[8] + #ARGV[9]
local max_bytes, rate, burst = tonumber(ARGV[13]), tonumber(ARGV[14]), tonumber(ARGV[15])
if redis.call('ZCARD', P .. 'wait:' .. model .. ':' .. stage) >= limit then return reply('full', id, 'jobs', limit) end
if max_bytes > 0 and number(redis.call('HGET', P .. 'use:', 'bytes')) + bytes > max_bytes then
  return reply('full', id, 'bytes', max_bytes)
end
local due, wait = bucket('rate:', rate, burst)
if wait > 0 then return reply('full', id, 'rate', rate, wait) end

local own = redis.call('HMGET', P .. 'tenant:' .. tenant, 'max_queued', 'max_bytes', 'rate', 'burst')
for i = 1, 4 do own[i] = tonumber(own[i] or ARGV[15 + i]) end
if own[1] > 0 or own[2] > 0 then
  local used = redis.call('HMGET', P .. 'use:' .. tenant, 'queued', 'delayed', 'bytes')
  if own[1] > 0 and number(used[1]) + number(used[2]) >= own[1] then return reply('quota', id, 'max_queued', own[1]) end
  if own[2] > 0 and number(used[3]) + bytes > own[2] then return reply('quota', id, 'max_bytes', own[2]) end
end
local own_due, own_wait = bucket('rate:' .. tenant, own[3], own[4])
if own_wait > 0 then return reply('quota', id, 'rate', own[3], own_wait) end

local function pass(key, at)
  if at then redis.call('SET', P .. key, string.format('%.3f', at), 'PX', math.max(1, math.ceil(at - NOW))) end
end
pass('rate:', due)
pass('rate:' .. tenant, own_due)
local job = {
  id = id, state = 'queued', tenant = tenant, model = model, stage = stage, score = NOW - boost, bytes = bytes,
}
redis.call('HSET', P .. 'j:' .. id,
  'state', 'queued', 'tenant', tenant, 'model', model, 'stages', stages, 'stage', stage, 'rows', rows,
  'score', job.score, 'request', ARGV[8], 'traceparent', ARGV[9], 'attempts', 0, 'crashes', 0, 'created', NOW,
  'updated', NOW, 'queued', NOW, 'deadline', NOW + timeout, 'timeout', timeout, 'bytes', bytes, 'ver', 1)
if idem ~= '' then
  redis.call('SET', idem_key, id .. ' ' .. hash)
  redis.call('HSET', P .. 'j:' .. id, 'idem', idem)
end
redis.call('ZADD', P .. 'tenants', 0, tenant)
redis.call('ZADD', P .. 'jobs:' .. tenant, 0, id)
redis.call('ZADD', P .. 'deadline', NOW + timeout, id)
charge(job, bytes)
enqueue(job)
return reply('created', id)
