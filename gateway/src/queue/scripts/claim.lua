-- Leases waiting jobs of a pool to a shard: the tenant of the least virtual time first, and of its jobs that of the
-- lowest score. A job is taken whole while any credit is left, so the last one may exceed it.
-- ARGV: model, stage, owner, lease ms, credit in rows, nonce, nonce, … (one for each job that may be taken)
-- Reply: {{id, nonce, request, low tokens, checkpoint, deadline, traceparent, waited ms, attempts, tenant}, …}
-- Repeating a call whose reply was lost, with the same nonces, gives the same jobs.
local model, stage, owner = ARGV[1], ARGV[2], ARGV[3]
local lease, credit = tonumber(ARGV[4]), tonumber(ARGV[5])
if not (model and stage and owner and lease and credit and ARGV[6]) or #ARGV > 105 then
  return redis.error_reply('ERR claim: bad arguments')
end
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
if last and string.sub(last, 1, #ARGV[6]) == ARGV[6] then
  local again, i = {}, 6
  for id in string.gmatch(string.sub(last, #ARGV[6] + 1), '%S+') do
    local job = load(id)
    if job and job.state == 'running' and job.nonce == ARGV[i] then again[#again + 1] = describe(job, ARGV[i]) end
    i = i + 1
  end
  return again
end

local active = P .. 'act:' .. pool
if redis.call('EXISTS', active) == 0 then return {} end

local expires = lease_clock() + lease
local granted, ids = {}, ARGV[6]
local looks = 0
while credit > 0 and #granted < #ARGV - 5 and looks < 100 do
  looks = looks + 1
  local head = redis.call('ZRANGE', active, 0, 0, 'WITHSCORES')
  if #head == 0 then break end
  local tenant, virtual = head[1], tonumber(head[2])
  local queue = P .. 'q:' .. pool .. ':' .. tenant
  local id = redis.call('ZRANGE', queue, 0, 0)[1]
  local job = id and load(id)
  if not id then
    redis.call('ZREM', active, tenant)
  elseif not job or job.state ~= 'queued' or pool_of(job) ~= pool then
    -- Not this queue's any more: only a fault could leave it here.
    redis.call('ZREM', queue, id)
    redis.call('ZREM', P .. 'wait:' .. pool, id)
  elseif tonumber(job.deadline) <= NOW then
    finish(job, 'failed', 'err_reason', 5, 'err_message', 'the deadline passed while the job waited for a shard')
  else
    local nonce = ARGV[6 + #granted]
    local weight = tonumber(redis.call('HGET', P .. 'weight', tenant) or 1) or 1
    local rows = tonumber(job.rows) or 1
    local shown = describe(job, nonce)
    redis.call('HSET', P .. 'vt:' .. pool, '', virtual)
    redis.call('ZADD', active, virtual + rows / weight, tenant)
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
