-- Prepended to a script by the model's test: Redis' clock and doorbells in the test's hand. TIME is what the list `clock`
-- says; when keys go that go by themselves is noted in the hash `expiry`, and what is rung in the list `rung`.
local real = redis
local function test_now()
  local time = real.call('LRANGE', 'clock', 0, 1)
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local redis = setmetatable({
  call = function(name, key, ...)
    if name == 'TIME' then return real.call('LRANGE', 'clock', 0, 1) end
    if name == 'PUBLISH' then return real.call('RPUSH', 'rung', key .. ' ' .. (...)) end
    if name == 'SET' then
      local value, how, ms = ...
      real.call('HDEL', 'expiry', key)
      if how == 'PX' then real.call('HSET', 'expiry', key, test_now() + ms) end
      return real.call('SET', key, value)
    end
    if name == 'PEXPIRE' then
      if real.call('EXISTS', key) == 0 then return 0 end
      real.call('HSET', 'expiry', key, test_now() + (...))
      return 1
    end
    if name == 'PTTL' then
      local expires = real.call('HGET', 'expiry', key)
      return expires and expires - test_now() or real.call('PTTL', key)
    end
    local result = real.call(name, key, ...)
    if name == 'DEL' then real.call('HDEL', 'expiry', key, ...) end
    if name == 'HDEL' and real.call('EXISTS', key) == 0 then real.call('HDEL', 'expiry', key) end
    return result
  end,
}, { __index = real })
