-- Leases waiting jobs of a pool to a shard: the tenant of the least virtual time first, and of its jobs that of the
-- lowest score. A job is taken whole while any credit is left, so the last one may exceed it. A pool that is paused gives
-- nothing; a tenant that is paused, or has as many jobs running as it may, is passed over.
-- ARGV: model, stage, owner, lease ms, credit in rows, weight and most running jobs (0: no limit) of a tenant without
--       settings of its own, failures of a job that are kept, nonce, nonce, … (one for each job that may be taken)
-- Reply: {{id, nonce, request, low tokens, checkpoint, deadline, traceparent, waited ms, attempts, tenant}, …}
-- Repeating a call whose reply was lost, with the same nonces, gives the same jobs.
local model, stage, owner = ARGV[1], ARGV[2], ARGV[3]
local lease, credit, weight, cap = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
-- The first nonce's place.
local FIRST = 9
HISTORY = tonumber(ARGV[8])
local bad = not (model and stage and owner and lease and credit and weight and cap and HISTORY and ARGV[FIRST])
  or weight <= 0 or HISTORY < 1 or #ARGV > FIRST - 1 + 100
for i = FIRST, #ARGV do bad = bad or ARGV[i] == '' end
if bad then return redis.error_reply('ERR claim: bad arguments') end
local pool = model .. ':' .. stage

local function describe(job, nonce)
  local before = neighbours(job.stages, job.stage)
  local v = redis.call('HMGET', P .. 'j:' .. job.id, 'request', 'ckpt', 'deadline', 'traceparent', 'queued',
    'attempts', 'tenant', 'out:' .. (before or ''))
  return {
    job.id, nonce, v[1] or '', v[8] or '', v[2] or '', v[3] or '0', v[4] or '',
    string.format('%.0f', math.max(0, NOW - (tonumber(v[5]) or NOW))), v[6] or '0', v[7] or '',
  }
end

local claimed_key = P .. 'claim:' .. owner
local last = redis.call('GET', claimed_key)
if last and string.match(last, '^%S+') == ARGV[FIRST] then
  local again, i = {}, FIRST
  for id in string.gmatch(string.sub(last, #ARGV[FIRST] + 1), '%S+') do
    local job = load(id)
    if job and job.state == 'running' and job.nonce == ARGV[i] then again[#again + 1] = describe(job, ARGV[i]) end
    i = i + 1
  end
  return again
end

local active = P .. 'act:' .. pool
if redis.call('EXISTS', active) == 0 or redis.call('HEXISTS', P .. 'paused', pool) == 1 then return {} end

local expires = lease_clock() + lease
local granted, ids = {}, ARGV[FIRST]
local looks = 0
while credit > 0 and #granted < #ARGV - FIRST + 1 and looks < 100 do
  looks = looks + 1
  local head = redis.call('ZRANGE', active, 0, 0, 'WITHSCORES')
  if #head == 0 then break end
  local tenant, virtual = head[1], tonumber(head[2])
  local queue = P .. 'q:' .. pool .. ':' .. tenant
  local id = redis.call('ZRANGE', queue, 0, 0)[1]
  local job = id and load(id)
  local own = redis.call('HMGET', P .. 'tenant:' .. tenant, 'weight', 'max_running', 'paused')
  local most = tonumber(own[2] or cap)
  if not id then
    redis.call('ZREM', active, tenant)
  elseif not job or job.state ~= 'queued' or pool_of(job) ~= pool then
    -- Not this queue's any more: only a fault could leave it here.
    redis.call('ZREM', queue, id)
    redis.call('ZREM', P .. 'wait:' .. pool, id)
  elseif tonumber(job.deadline) <= NOW then
    bury(job, 5, 'the deadline passed while the job waited for a shard')
  elseif own[3] or (most > 0 and number(redis.call('HGET', P .. 'use:' .. tenant, 'running')) >= most) then
    hold(pool, tenant)
  else
    local nonce = ARGV[FIRST + #granted]
    local rows = tonumber(job.rows) or 1
    local shown = describe(job, nonce)
    redis.call('HSET', P .. 'vt:' .. pool, '', virtual)
    redis.call('ZADD', active, virtual + rows / tonumber(own[1] or weight), tenant)
    dequeue(job)
    redis.call('ZADD', P .. 'lease', expires, id)
    count('running', job, 1)
    redis.call('HDEL', P .. 'j:' .. id, 'prev')
    save(job, 'state', 'running', 'nonce', nonce, 'owner', owner, 'claimed', NOW)
    credit = credit - rows
    granted[#granted + 1] = shown
    ids = ids .. ' ' .. id
  end
end
if #granted > 0 then redis.call('SET', claimed_key, ids, 'PX', math.max(1, lease)) end
return granted
