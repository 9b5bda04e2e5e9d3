-- wrk's load: requests of a pool, each with a new messageId of fixed width.
-- Arguments after "--": file of the pool (one body after the messageId a line), prefix of the ids.
local heads, tails, count, sent, prefix = {}, {}, 0, 0, ""

function init(args)
  prefix = args[2]
  for line in io.lines(args[1]) do
    count = count + 1
    -- {"messageId":"  + 24 bytes of id + the line
    heads[count] = "POST /v1/decide HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
      .. "Content-Length: " .. (14 + 24 + #line) .. "\r\n\r\n{\"messageId\":\"" .. prefix
    tails[count] = line
  end
  -- Each run enters the pool elsewhere.
  sent = tonumber(prefix, 16) * 7919
end

function request()
  sent = sent + 1
  local at = sent % count + 1
  return heads[at] .. string.format("%016d", sent) .. tails[at]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests":%d,"duration_s":%.6f,"p50_us":%.1f,"p99_us":%.1f,"errors":%d,"refused":%d}\n',
    summary.requests - errors.status, summary.duration / 1e6, latency:percentile(50),
    latency:percentile(99), errors.connect + errors.read + errors.write + errors.timeout,
    errors.status))
end
