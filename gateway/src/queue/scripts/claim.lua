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

-- What a lease tells, beside the fields of every job.
local SHOWN = { 'rows', 'deadline', 'request', 'ckpt', 'traceparent', 'queued', 'attempts' }

local function describe(job, nonce)
  local before = neighbours(job.stages, job.stage)
  local tokens = before and redis.call('HGET', P .. 'j:' .. job.id, 'out:' .. before)
  return {
    job.id, nonce, job.request, tokens or '', job.ckpt, job.deadline ~= '' and job.deadline or '0', job.traceparent,
    string.format('%.0f', math.max(0, NOW - (tonumber(job.queued) or NOW))), job.attempts ~= '' and job.attempts or '0',
    job.tenant,
  }
end

local claimed_key = P .. 'claim:' .. owner
local last = redis.call('GET', claimed_key)
if last and string.match(last, '^%S+') == ARGV[FIRST] then
  local again, i = {}, FIRST
  for id in string.gmatch(string.sub(last, #ARGV[FIRST] + 1), '%S+') do
    local job = load(id, unpack(SHOWN))
    if job and job.state == 'running' and job.nonce == ARGV[i] then again[#again + 1] = describe(job, ARGV[i]) end
    i = i + 1
  end
  return again
end

local active = P .. 'act:' .. pool
if redis.call('EXISTS', active) == 0 or redis.call('HEXISTS', P .. 'paused', pool) == 1 then return {} end

changed = {}
local expires = lease_clock() + lease
local granted, ids = {}, { ARGV[FIRST] }
local room = #ARGV - FIRST + 1

-- Jobs that were chosen one after another of one tenant, into their leases; `virtual` is the tenant's time when the last
-- was chosen, `after` the one that it has now.
local function take(tenant, jobs, virtual, after)
  if #jobs == 0 then return end
  local own_ids, leases = {}, {}
  for i, job in ipairs(jobs) do
    own_ids[i] = job.id
    leases[2 * i - 1], leases[2 * i] = expires, job.id
    ids[#ids + 1] = job.id
  end
  redis.call('HSET', P .. 'vt:' .. pool, '', virtual)
  redis.call('ZADD', active, after, tenant)
  dequeue_all(jobs, own_ids)
  redis.call('ZADD', P .. 'lease', unpack(leases))
  count_all('running', jobs, 1)
  for _, job in ipairs(jobs) do
    local id, nonce = job.id, ARGV[FIRST + #granted]
    granted[#granted + 1] = describe(job, nonce)
    if job.has_prev then redis.call('HDEL', P .. 'j:' .. id, 'prev') end
    save(job, 'state', 'running', 'nonce', nonce, 'owner', owner, 'claimed', NOW)
  end
end

local looks = 0
while credit > 0 and #granted < room and looks < 100 do
  local head = redis.call('ZRANGE', active, 0, 1, 'WITHSCORES')
  if #head == 0 then break end
  local tenant, virtual, others = head[1], tonumber(head[2]), tonumber(head[4])
  local queue = P .. 'q:' .. pool .. ':' .. tenant
  local own = redis.call('HMGET', P .. 'tenant:' .. tenant, 'weight', 'max_running', 'paused')
  local share = tonumber(own[1] or weight)
  local most = tonumber(own[2] or cap)
  local running = most > 0 and number(redis.call('HGET', P .. 'use:' .. tenant, 'running')) or 0
  -- As many as can be its turn before the next tenant's, at a row each.
  local turn = math.min(room - #granted, 100 - looks)
  if others then turn = math.min(turn, math.floor((others - virtual) * share) + 1) end
  local waiting = redis.call('ZRANGE', queue, 0, math.max(turn, 1) - 1)
  if #waiting == 0 then
    looks = looks + 1
    redis.call('ZREM', active, tenant)
  end
  local chosen, at = {}, virtual
  for _, id in ipairs(waiting) do
    looks = looks + 1
    local job = load(id, unpack(SHOWN))
    if not job or job.state ~= 'queued' or pool_of(job) ~= pool then
      -- Not this queue's any more: only a fault could leave it here.
      take(tenant, chosen, at, virtual)
      chosen = {}
      redis.call('ZREM', queue, id)
      redis.call('ZREM', P .. 'wait:' .. pool, id)
    elseif tonumber(job.deadline) <= NOW then
      take(tenant, chosen, at, virtual)
      chosen = {}
      bury(job, 5, 'the deadline passed while the job waited for a shard')
    elseif own[3] or (most > 0 and running >= most) then
      take(tenant, chosen, at, virtual)
      chosen = {}
      hold(pool, tenant)
      break
    else
      local rows = tonumber(job.rows) or 1
      chosen[#chosen + 1] = job
      running = running + 1
      at, virtual = virtual, virtual + rows / tonumber(own[1] or weight)
      credit = credit - rows
      if credit <= 0 or #granted + #chosen >= room or (others and virtual >= others) then break end
    end
  end
  take(tenant, chosen, at, virtual)
end
tell()
if #granted > 0 then redis.call('SET', claimed_key, table.concat(ids, ' '), 'PX', math.max(1, lease)) end
return granted
