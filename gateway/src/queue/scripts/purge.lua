-- Forgets jobs that ended long ago.
-- ARGV: most jobs of each kind, ms that succeeded and cancelled jobs are kept, ms that failed ones are kept
-- Reply: {{id, nonce of its pictures or ''}, …}
local limit, done, dead = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if not (limit and done and dead) or limit < 0 or limit > 100 then
  return redis.error_reply('ERR purge: bad arguments')
end

local purged = {}
local function sweep(set, keep)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. set, '-inf', NOW - keep, 'LIMIT', 0, limit)) do
    if LIVE[redis.call('HGET', P .. 'j:' .. id, 'state')] then
      -- Only a fault could leave it here.
      redis.call('ZREM', P .. set, id)
    else
      purged[#purged + 1] = { id, forget(id) }
    end
  end
end
sweep('done', done)
sweep('dead', dead)
return purged
