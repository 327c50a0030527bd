-- Accepts jobs, one after another, each as if it came alone. Safe to repeat with the same ids.
-- ARGV: most jobs that may wait in a pool, then for the whole shard: most bytes, submissions a second, burst,
--       then for a tenant without settings of its own: most jobs queued, most bytes, submissions a second, burst
--       (0 is no limit, but for the jobs that may wait),
--       then for each job: id, tenant, model, stages, rows, boost ms, timeout ms, request, traceparent,
--       idempotency hash or '', request hash, '1' to be told its rank
-- Reply: for each {'created' | 'existed' | 'conflict' | 'full' | 'quota' | 'broken', id, which limit or what broke or '', the
--        limit or '', ms to wait or 0, when it was created or 0 where that was not now, its rank among its tenant's or -1}
local FIRST, SIZE, MOST = 9, 12, 100
local limit, max_bytes, rate, burst = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local length = #ARGV - FIRST + 1
local bad = length <= 0 or length % SIZE ~= 0 or length > MOST * SIZE
for i = 1, FIRST - 1 do bad = bad or not tonumber(ARGV[i]) end
for i = FIRST, #ARGV, SIZE do
  bad = bad or ARGV[i] == '' or ARGV[i + 1] == '' or ARGV[i + 2] == '' or not string.match(ARGV[i + 3], '^[^,]+')
    or not (tonumber(ARGV[i + 4]) and tonumber(ARGV[i + 5]) and tonumber(ARGV[i + 6]))
    or (ARGV[i + 9] ~= '' and ARGV[i + 10] == '')
end
if bad then return redis.error_reply('ERR submit: bad arguments') end

local function reply(outcome, id, which, value, wait)
  return { outcome, id, which or '', value and tostring(value) or '', math.ceil(wait or 0), 0, -1 }
end

-- What is looked at once for all: jobs that wait by pool, bytes of the shard's live jobs, limits and use by tenant.
local waiting, live_bytes, tenants = {}, nil, {}

local function waiting_in(pool)
  if not waiting[pool] then waiting[pool] = redis.call('ZCARD', P .. 'wait:' .. pool) end
  return waiting[pool]
end

local function bytes_of_all()
  if not live_bytes then live_bytes = number(redis.call('HGET', P .. 'use:', 'bytes')) end
  return live_bytes
end

local function limits_of(tenant)
  local own = tenants[tenant]
  if own then return own end
  own = redis.call('HMGET', P .. 'tenant:' .. tenant, 'max_queued', 'max_bytes', 'rate', 'burst')
  for i = 1, 4 do own[i] = tonumber(own[i] or ARGV[4 + i]) end
  own.jobs, own.bytes = 0, 0
  if own[1] > 0 or own[2] > 0 then
    local used = redis.call('HMGET', P .. 'use:' .. tenant, 'queued', 'delayed', 'bytes')
    own.jobs, own.bytes = number(used[1]) + number(used[2]), number(used[3])
  end
  tenants[tenant] = own
  return own
end

-- Submissions are spaced by 1/rate; `burst` of them may come at once. What is kept is when the next would be on time.
local dues = {}
local function bucket(key, at_rate, at_once)
  if at_rate <= 0 then return nil, 0 end
  local space, most = 1000 / at_rate, math.max(1, at_once > 0 and at_once or math.ceil(at_rate))
  -- A clock that was set back must not shut anybody out for longer than a full bucket takes.
  local due = math.min(math.max(number(dues[key] or redis.call('GET', P .. key)), NOW), NOW + most * space)
  return due + space, math.max(0, due - NOW - (most - 1) * space)
end
local function pass(key, at)
  if not at then return end
  dues[key] = string.format('%.3f', at)
  redis.call('SET', P .. key, dues[key], 'PX', math.max(1, math.ceil(at - NOW)))
end

-- Those that were accepted: by place in ARGV, and in groups of their pools and tenants.
local new, groups = {}, {}

local function submit(i)
  local id, tenant, model, stages, idem = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 9]
  if redis.call('EXISTS', P .. 'j:' .. id) == 1 then return reply('created', id) end
  local idem_key = P .. 'idem:' .. tenant .. ':' .. idem
  if idem ~= '' then
    local known = redis.call('GET', idem_key)
    if known then
      local known_id, known_hash = string.match(known, '^(%S+) (%S+)$')
      return reply(known_hash == ARGV[i + 10] and 'existed' or 'conflict', known_id)
    end
  end

  local stage = string.match(stages, '^[^,]+')
  local pool, request, traceparent = model .. ':' .. stage, ARGV[i + 7], ARGV[i + 8]
  local bytes = #request + #traceparent
  if waiting_in(pool) >= limit then return reply('full', id, 'jobs', limit) end
  if max_bytes > 0 and bytes_of_all() + bytes > max_bytes then return reply('full', id, 'bytes', max_bytes) end
  local due, wait = bucket('rate:', rate, burst)
  if wait > 0 then return reply('full', id, 'rate', rate, wait) end
  local own = limits_of(tenant)
  if own[1] > 0 and own.jobs >= own[1] then return reply('quota', id, 'max_queued', own[1]) end
  if own[2] > 0 and own.bytes + bytes > own[2] then return reply('quota', id, 'max_bytes', own[2]) end
  local own_due, own_wait = bucket('rate:' .. tenant, own[3], own[4])
  if own_wait > 0 then return reply('quota', id, 'rate', own[3], own_wait) end

  pass('rate:', due)
  pass('rate:' .. tenant, own_due)
  waiting[pool], own.jobs, own.bytes = waiting[pool] + 1, own.jobs + 1, own.bytes + bytes
  if live_bytes then live_bytes = live_bytes + bytes end
  local timeout = tonumber(ARGV[i + 6])
  local job = {
    id = id, state = 'queued', tenant = tenant, model = model, stage = stage, score = NOW - tonumber(ARGV[i + 5]),
    bytes = bytes, deadline = NOW + timeout,
  }
  local fields = {
    'state', 'queued', 'tenant', tenant, 'model', model, 'stages', stages, 'stage', stage, 'rows', ARGV[i + 4],
    'score', job.score, 'request', request, 'traceparent', traceparent, 'attempts', 0, 'crashes', 0, 'created', NOW,
    'updated', NOW, 'queued', NOW, 'deadline', job.deadline, 'timeout', timeout, 'bytes', bytes, 'ver', 1,
  }
  if idem ~= '' then
    redis.call('SET', idem_key, id .. ' ' .. ARGV[i + 10])
    fields[#fields + 1], fields[#fields + 2] = 'idem', idem
  end
  redis.call('HSET', P .. 'j:' .. id, unpack(fields))
  new[#new + 1] = job
  gather(groups, job)
  local created = reply('created', id)
  created[6] = NOW
  if ARGV[i + 11] == '1' then job.told = created end
  return created
end

local replies = {}
for i = FIRST, #ARGV, SIZE do
  local answer, fault = guarded(submit, i)
  replies[#replies + 1] = answer or reply('broken', ARGV[i], fault)
end
if #new == 0 then return replies end

local deadlines, bytes, kept = {}, {}, {}
for i, job in ipairs(new) do
  deadlines[2 * i - 1], deadlines[2 * i] = job.deadline, job.id
  bytes[i] = job.bytes
  local ids = kept[job.tenant] or {}
  kept[job.tenant], ids[#ids + 1], ids[#ids + 2] = ids, 0, job.id
end
for tenant, ids in pairs(kept) do
  redis.call('ZADD', P .. 'tenants', 0, tenant)
  redis.call('ZADD', P .. 'jobs:' .. tenant, unpack(ids))
end
redis.call('ZADD', P .. 'deadline', unpack(deadlines))
charge_all(new, bytes)
for _, group in ipairs(groups) do enqueue_all(group) end
for _, job in ipairs(new) do
  if job.told then
    job.told[7] = redis.call('ZRANK', P .. 'q:' .. pool_of(job) .. ':' .. job.tenant, job.id)
  end
end
return replies
