-- Settings of a tenant. What is not set comes from the gateways' configuration.
-- ARGV: tenant, then pairs: name, value ('' takes the setting away)
-- Reply: 'ok'
local tenant = ARGV[1]
local SETTINGS = { weight = true, max_running = true, max_queued = true, max_bytes = true, rate = true, burst = true }
local bad = is_empty(tenant) or #ARGV % 2 ~= 1 or #ARGV > 101
for i = 2, #ARGV, 2 do
  local name, value = ARGV[i], tonumber(ARGV[i + 1])
  bad = bad or not SETTINGS[name] or ARGV[i + 1] ~= '' and (not value or value < 0 or name == 'weight' and value == 0)
end
if bad then return redis.error_reply('ERR tenant_set: bad arguments') end

local key = P .. 'tenant:' .. tenant
for i = 2, #ARGV, 2 do
  if ARGV[i + 1] == '' then redis.call('HDEL', key, ARGV[i]) else redis.call('HSET', key, ARGV[i], ARGV[i + 1]) end
end
if redis.call('EXISTS', key, P .. 'jobs:' .. tenant) > 0 then
  redis.call('ZADD', P .. 'tenants', 0, tenant)
else
  forget_tenant(tenant)
end
-- A higher cap may let it go on at once.
admit(tenant)
return 'ok'
