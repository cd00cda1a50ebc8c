-- wrk's part of `layer8 bench tunnel`: sealed requests from a file, one after the other, or plain ones; a pace; figures.
local file, size, headers, last
local delay_ms = tonumber(os.getenv("DELAY_MS") or "0")

function init(args)
  math.randomseed(os.time())
  local path = os.getenv("SEALED")
  if path then
    file = io.open(path, "rb")
    size = tonumber(os.getenv("SEALED_SIZE"))
    headers = { ["Content-Type"] = "message/ohttp-chunked-req", ["Incremental"] = "?1" }
    request = sealed
  end
  if delay_ms > 0 then
    delay = function() return math.floor(2 * delay_ms * math.random() + 0.5) end
  end
end

function sealed()
  local body = file:read(size)
  if not body then
    wrk.thread:stop() -- all are used up: a repeated one would not be let in
    body = last
  end
  last = body
  return wrk.format("POST", nil, headers, body)
end

function done(summary, latency, requests)
  local errors = summary.errors
  local bad = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format('\n{"requests": %d, "us": %d, "errors": %d, "p50": %g, "p99": %g}\n',
    summary.requests, summary.duration, bad, latency:percentile(50), latency:percentile(99)))
end
