-- Stops or lets go on: a pool, or a tenant. What runs goes on; what waits waits, and its deadlines pass.
-- ARGV: 'pool' | 'tenant', its name, 'pause' | 'resume', reason
-- Reply: what it was paused with before, '<ms> <reason>', or ''; for 'pause' that stays
local kind, name, act, reason = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
-- A pool's name has a colon, a tenant's has none: that tells them apart in `paused`.
local is_named = not is_empty(name) and kind == (string.find(name, ':', 1, true) and 'pool' or 'tenant')
if not is_named or (act ~= 'pause' and act ~= 'resume') or not reason then
  return redis.error_reply('ERR pause: bad arguments')
end

-- All that is paused is in one hash; a tenant's own hash has it too, where a claim looks anyway.
local key = P .. 'tenant:' .. name
local before = redis.call('HGET', P .. 'paused', name) or ''
if act == 'pause' then
  local since = before ~= '' and before or string.format('%.0f', NOW) .. ' ' .. reason
  redis.call('HSET', P .. 'paused', name, since)
  if kind == 'tenant' then
    redis.call('HSET', key, 'paused', since)
    redis.call('ZADD', P .. 'tenants', 0, name)
  end
  return before
end
redis.call('HDEL', P .. 'paused', name)
if kind == 'pool' then
  redis.call('PUBLISH', P .. 'work', name)
else
  redis.call('HDEL', key, 'paused')
  admit(name)
  if redis.call('EXISTS', key, P .. 'jobs:' .. name) == 0 then forget_tenant(name) end
end
return before
