-- wrk: POST one body over and over. Arguments: the body's file, seconds to warm up, seconds to count.
-- With a warm-up, only answers that arrive within the counted seconds are counted.
local ffi = require("ffi")
ffi.cdef [[
  typedef struct { long seconds; long nanoseconds; } moment;
  int clock_gettime(int clock, moment *now);
]]

local threads = {}
local moment = ffi.new("moment")

local function now()
  ffi.C.clock_gettime(1, moment)
  return tonumber(moment.seconds) + tonumber(moment.nanoseconds) / 1e9
end

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  local file = assert(io.open(args[1], "rb"))
  wrk.method = "POST"
  wrk.body = file:read("*a")
  file:close()
  warm, seconds, counted = tonumber(args[2]), tonumber(args[3]), 0
  if warm > 0 then
    local from
    response = function()
      local moment_of_answer = now()
      from = from or started + warm
      if moment_of_answer >= from and moment_of_answer < from + seconds then counted = counted + 1 end
    end
  end
  started = now()
end

function done(summary, latency)
  local errors = summary.errors
  local rate = summary.requests / (summary.duration / 1e6)
  local thread = threads[1]
  if thread:get("warm") > 0 then rate = thread:get("counted") / thread:get("seconds") end
  io.write(string.format('\n{"answers": %d, "errors": %d, "per_second": %.17g, "p50_ms": %.17g, "p99_ms": %.17g}\n',
    summary.requests, errors.connect + errors.read + errors.write + errors.status + errors.timeout, rate,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
