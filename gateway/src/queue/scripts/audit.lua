-- Looks at a part of the queue: whether every job is in exactly one place, whether every entry belongs to a job, whether
-- the counters are right. With `repair`, mends what it reports.
-- ARGV: token of this audit, 'begin' | 'jobs' | 'entries' | 'keys' | 'counters' | 'end', '1' to repair, lease ms,
--   ms that the auditor may pause before the audit counts as given up, then
--   jobs: ids; entries: the key's name and its members; keys: names of `idem:` and `hist:` keys; counters: names of the
--   recount's fields, `cnt:<field>` or `use:<tenant>:<field>` (at most 100 of each)
-- Reply: {kind, subject, detail}, … ; 'superseded' when another audit has begun or this one paused for too long.
--        kind: 'misplaced' | 'orphan' | 'broken' | 'counter'
local token, act, repair, lease, patience = ARGV[1], ARGV[2], ARGV[3] == '1', tonumber(ARGV[4]), tonumber(ARGV[5])
-- The first name's place.
local FIRST = 6
if is_empty(token) or is_empty(act) or not (lease and patience) or patience < 1 or #ARGV > FIRST - 1 + 100 then
  return redis.error_reply('ERR audit: bad arguments')
end

-- Repeated, it must not throw away what was tallied since.
if act == 'begin' and auditing() ~= token then
  redis.call('DEL', P .. 'recount')
  redis.call('SET', P .. 'audit', token, 'PX', patience)
  return {}
end
if auditing() ~= token then return 'superseded' end
if act == 'end' then
  redis.call('DEL', P .. 'audit', P .. 'recount')
  return {}
end
redis.call('PEXPIRE', P .. 'audit', patience)
redis.call('PEXPIRE', P .. 'recount', patience)
if act == 'begin' then return {} end

local found = {}
local function report(kind, subject, detail) found[#found + 1] = { kind, subject, detail } end

-- Where a job in this state belongs; score nil: any.
local function place_of(job)
  if job.state == 'queued' then return 'q:' .. pool_of(job) .. ':' .. job.tenant, tonumber(job.score) end
  if job.state == 'running' then return 'lease' end
  if job.state == 'delayed' then return 'delay' end
  if job.state == 'failed' then return 'dead' end
  return 'done'
end

local function look_at(id)
  local job = load(id, 'deadline')
  if not job then
    if redis.call('EXISTS', P .. 'j:' .. id) == 1 then
      report('broken', id, 'its record has no state')
      if repair then redis.call('DEL', P .. 'j:' .. id) end
    end
    return
  end
  local wrong = {}
  local function check(ok, what, mend)
    if ok then return end
    wrong[#wrong + 1] = what
    if repair then mend() end
  end
  local live, home, score = LIVE[job.state], place_of(job)
  local places = { 'lease', 'delay', 'done', 'dead' }
  for stage in string.gmatch(job.stages, '[^,]+') do
    local pool = job.model .. ':' .. stage
    places[#places + 1] = 'q:' .. pool .. ':' .. job.tenant
    local waits = job.state == 'queued' and stage == job.stage
    check((redis.call('ZSCORE', P .. 'wait:' .. pool, id) ~= false) == waits, 'wait:' .. pool, function()
      if waits then redis.call('ZADD', P .. 'wait:' .. pool, NOW, id) else redis.call('ZREM', P .. 'wait:' .. pool, id) end
    end)
  end
  for _, place in ipairs(places) do
    local at = redis.call('ZSCORE', P .. place, id)
    if place == home then
      check(at and (not score or tonumber(at) == score), place, function()
        local since = NOW
        if place == 'lease' then since = lease_clock() + lease end
        redis.call('ZADD', P .. place, score or since, id)
      end)
    else
      check(not at, place, function() redis.call('ZREM', P .. place, id) end)
    end
  end
  local due = redis.call('ZSCORE', P .. 'deadline', id)
  check((due ~= false) == (live == true), 'deadline', function()
    if live then redis.call('ZADD', P .. 'deadline', number(job.deadline), id)
    else redis.call('ZREM', P .. 'deadline', id) end
  end)
  for key, member in pairs({ ['jobs:' .. job.tenant] = id, tenants = job.tenant }) do
    check(redis.call('ZSCORE', P .. key, member), key, function() redis.call('ZADD', P .. key, 0, member) end)
  end
  if job.state == 'queued' then
    local pool = pool_of(job)
    local in_line = redis.call('ZSCORE', P .. 'act:' .. pool, job.tenant)
    local held = redis.call('SISMEMBER', P .. 'held:' .. job.tenant, pool) == 1
    check((in_line and true or false) ~= held, 'act:' .. pool, function()
      if held then redis.call('SREM', P .. 'held:' .. job.tenant, pool) else line_up(pool, job.tenant) end
    end)
  end
  if #wrong > 0 then report('misplaced', id, 'is ' .. job.state .. '; wrong in ' .. table.concat(wrong, ', ')) end
  if live and see(job) then tally_state(job, job.state, 1) end
end

-- Whether a member of a key is where it belongs.
local function belongs(key, member)
  local pool = string.match(key, '^act:(.*)$')
  if pool then return redis.call('EXISTS', P .. 'q:' .. pool .. ':' .. member) == 1 end
  local tenant = string.match(key, '^held:(.*)$')
  if tenant then return redis.call('EXISTS', P .. 'q:' .. member .. ':' .. tenant) == 1 end
  if key == 'tenants' then return redis.call('EXISTS', P .. 'jobs:' .. member, P .. 'tenant:' .. member) > 0 end
  local job = load(member)
  if not job then return false end
  if key == 'deadline' then return LIVE[job.state] end
  if string.sub(key, 1, 5) == 'jobs:' then return key == 'jobs:' .. job.tenant end
  if string.sub(key, 1, 5) == 'wait:' then return job.state == 'queued' and key == 'wait:' .. pool_of(job) end
  return key == place_of(job)
end

if act == 'jobs' then
  for i = FIRST, #ARGV do look_at(ARGV[i]) end
elseif act == 'entries' then
  local key = ARGV[FIRST]
  local is_set = string.sub(key, 1, 5) == 'held:'
  for i = FIRST + 1, #ARGV do
    -- It may have left since the auditor read the key.
    local there
    if is_set then there = redis.call('SISMEMBER', P .. key, ARGV[i]) == 1
    else there = redis.call('ZSCORE', P .. key, ARGV[i]) end
    if there and not belongs(key, ARGV[i]) then
      report('orphan', ARGV[i], 'is in ' .. key .. ', where it does not belong')
      if repair then redis.call(is_set and 'SREM' or 'ZREM', P .. key, ARGV[i]) end
    end
  end
elseif act == 'keys' then
  for i = FIRST, #ARGV do
    local key = ARGV[i]
    local id = string.match(key, '^hist:(.*)$')
    local ok
    if id then
      ok = redis.call('EXISTS', P .. key) == 0 or redis.call('EXISTS', P .. 'j:' .. id) == 1
    else
      local hash = string.match(key, '^idem:[^:]*:(.*)$')
      local of = redis.call('GET', P .. key)
      id = of and string.match(of, '^%S+')
      ok = not of or (id and redis.call('HGET', P .. 'j:' .. id, 'idem') == hash)
    end
    if not ok then
      report('orphan', key, 'belongs to no job')
      if repair then redis.call('DEL', P .. key) end
    end
  end
elseif act == 'counters' then
  for i = FIRST, #ARGV do
    local key, field = 'cnt', string.match(ARGV[i], '^cnt:(.*)$')
    if not field then
      local tenant
      tenant, field = string.match(ARGV[i], '^use:([^:]*):(.*)$')
      if not tenant then return redis.error_reply('ERR audit: no such counter') end
      key = 'use:' .. tenant
    end
    local is = number(redis.call('HGET', P .. key, field))
    local should = number(redis.call('HGET', P .. 'recount', ARGV[i]))
    if is ~= should then
      report('counter', key .. ' ' .. field, 'is ' .. is .. ' where ' .. should .. ' were counted')
      if repair then add(key, field, should - is) end
    end
  end
else
  return redis.error_reply('ERR audit: bad arguments')
end
return found
