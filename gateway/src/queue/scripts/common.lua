-- Prepended to every script of a queue shard. KEYS[1] is the shard's `meta` key, for routing and for the prefix;
-- every other key has the same hash tag.
--
-- A job is in exactly one place: queued (`q:` and `wait:`), running (`lease`), delayed (`delay`), or ended (`done`
-- or `dead`). `enqueue`, `leave` and `finish` are the only ways in and out.

local P = string.sub(KEYS[1], 1, -5)

local TIME = redis.call('TIME')
local NOW = TIME[1] * 1000 + math.floor(TIME[2] / 1000)

-- An outage of Redis or a jump of its clock adds at most this to the lease clock, so that it expires nothing.
local LONGEST_TICK = 2000

local FIELDS = {
  'state', 'stage', 'model', 'tenant', 'stages', 'rows', 'score', 'nonce', 'prev', 'owner', 'attempts', 'crashes',
  'deadline', 'step', 'of', 'err_reason', 'reported',
}

-- The job's fields as strings ('' when absent), or nil.
local function load(id)
  local values = redis.call('HMGET', P .. 'j:' .. id, unpack(FIELDS))
  if not values[1] then return nil end
  local job = { id = id }
  for i, name in ipairs(FIELDS) do job[name] = values[i] or '' end
  return job
end

local function pool_of(job) return job.model .. ':' .. job.stage end

-- Milliseconds that only pass while the queue is alive. Leases expire by it.
local function lease_clock()
  local stored = redis.call('HMGET', P .. 'clk', 'last', 'clock')
  local passed = NOW - (tonumber(stored[1]) or NOW)
  local clock = (tonumber(stored[2]) or 0) + math.max(0, math.min(passed, LONGEST_TICK))
  redis.call('HSET', P .. 'clk', 'last', NOW, 'clock', clock)
  return clock
end

local function count(state, job, by)
  local field = state .. ':' .. pool_of(job) .. ':' .. job.tenant
  if redis.call('HINCRBY', P .. 'cnt', field, by) == 0 then redis.call('HDEL', P .. 'cnt', field) end
end

-- Writes fields of a job and makes the change visible: a new version, and the doorbell.
local function save(job, ...)
  redis.call('HSET', P .. 'j:' .. job.id, 'updated', NOW, ...)
  redis.call('HINCRBY', P .. 'j:' .. job.id, 'ver', 1)
  redis.call('PUBLISH', P .. 'ev', job.id)
end

-- Virtual time of a pool: what the tenant served last had when it was chosen.
local function pool_time(pool) return tonumber(redis.call('HGET', P .. 'vt:' .. pool, '') or 0) or 0 end

-- Into the queue of its stage, at its original score. A tenant that comes back after a pause starts at the pool's
-- virtual time: it gets no credit for having been away.
local function enqueue(job)
  local pool = pool_of(job)
  redis.call('ZADD', P .. 'q:' .. pool .. ':' .. job.tenant, job.score, job.id)
  redis.call('ZADD', P .. 'wait:' .. pool, NOW, job.id)
  if not redis.call('ZSCORE', P .. 'act:' .. pool, job.tenant) then
    local own = tonumber(redis.call('HGET', P .. 'vt:' .. pool, job.tenant) or 0) or 0
    redis.call('ZADD', P .. 'act:' .. pool, math.max(own, pool_time(pool)), job.tenant)
  end
  count('queued', job, 1)
  redis.call('PUBLISH', P .. 'work', pool)
end

local function dequeue(job)
  local pool = pool_of(job)
  local queue = P .. 'q:' .. pool .. ':' .. job.tenant
  redis.call('ZREM', queue, job.id)
  redis.call('ZREM', P .. 'wait:' .. pool, job.id)
  count('queued', job, -1)
  if redis.call('EXISTS', queue) == 0 then
    local own = tonumber(redis.call('ZSCORE', P .. 'act:' .. pool, job.tenant) or 0) or 0
    redis.call('ZREM', P .. 'act:' .. pool, job.tenant)
    -- Only a tenant ahead of the pool must be remembered; the others start at the pool's time anyway.
    if own > pool_time(pool) then
      redis.call('HSET', P .. 'vt:' .. pool, job.tenant, own)
    else
      redis.call('HDEL', P .. 'vt:' .. pool, job.tenant)
    end
  end
end

-- Out of the one place where a live job is.
local function leave(job)
  if job.state == 'queued' then
    dequeue(job)
  elseif job.state == 'running' then
    redis.call('ZREM', P .. 'lease', job.id)
    count('running', job, -1)
  elseif job.state == 'delayed' then
    redis.call('ZREM', P .. 'delay', job.id)
    count('delayed', job, -1)
  end
end

-- Tells the hub session of the shard that holds the lease to drop the job. Only a doorbell: the next heartbeat says
-- the same.
local function revoke(job, reason)
  if job.state == 'running' and job.owner ~= '' then
    redis.call('PUBLISH', P .. 'rev', job.owner .. ' ' .. job.id .. ' ' .. job.nonce .. ' ' .. reason)
  end
end

-- Ends a live job for good. More fields may follow.
local function finish(job, state, ...)
  leave(job)
  redis.call('ZREM', P .. 'deadline', job.id)
  redis.call('ZADD', P .. (state == 'failed' and 'dead' or 'done'), NOW, job.id)
  redis.call('HDEL', P .. 'j:' .. job.id, 'nonce', 'prev', 'ckpt')
  save(job, 'state', state, 'finished', NOW, ...)
end

-- Back to its queue, with nobody's lease on it. `prev` is the nonce that may still finish it while nobody takes over.
local function requeue(job, prev, ...)
  leave(job)
  redis.call('HDEL', P .. 'j:' .. job.id, 'nonce')
  save(job, 'state', 'queued', 'prev', prev, 'queued', NOW, ...)
  job.state = 'queued'
  enqueue(job)
end

-- The stages of a job are a comma-separated list, fixed when it was submitted. Returns those before and after `stage`.
local function neighbours(stages, stage)
  local before, found = nil, false
  for name in string.gmatch(stages, '[^,]+') do
    if found then return before, name end
    if name == stage then found = true else before = name end
  end
  return before, nil
end

local LIVE = { queued = true, running = true, delayed = true }
