-- Forgets jobs that ended long ago.
-- ARGV: most jobs of each kind, ms that succeeded and cancelled jobs are kept, ms that failed ones are kept
-- Reply: {{id, nonce of its pictures or ''}, …}
local limit, done, dead = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if not (limit and done and dead) or limit > 100 then return redis.error_reply('ERR purge: bad arguments') end

local purged = {}
local function forget(set, keep)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. set, '-inf', NOW - keep, 'LIMIT', 0, limit)) do
    local v = redis.call('HMGET', P .. 'j:' .. id, 'tenant', 'idem', 'pictures_nonce')
    if v[1] then
      redis.call('ZREM', P .. 'jobs:' .. v[1], id)
      if v[2] then redis.call('DEL', P .. 'idem:' .. v[1] .. ':' .. v[2]) end
    end
    redis.call('DEL', P .. 'j:' .. id)
    redis.call('ZREM', P .. set, id)
    purged[#purged + 1] = { id, v[3] or '' }
  end
end
forget('done', done)
forget('dead', dead)
return purged
