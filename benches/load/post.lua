-- wrk script: POSTs one body, over and over. Reads from the environment:
--   LOAD_BODY  file with the body
--   LOAD_KEY   bearer token
--   LOAD_OTHER_KEY  bearer token of every other request (may be empty: of none)
--   LOAD_HEADER  one more header, "name: value" (may be empty)
-- Prints one line of JSON for load.py at the end.

local file = assert(io.open(os.getenv("LOAD_BODY"), "rb"))
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer " .. os.getenv("LOAD_KEY")
local name, value = string.match(os.getenv("LOAD_HEADER") or "", "^([^:]+):%s*(.*)$")
if name then
  wrk.headers[name] = value
end

local other = os.getenv("LOAD_OTHER_KEY") or ""
if other ~= "" then
  local requests, turn = {}, 0
  function init()
    local first = wrk.format()
    wrk.headers["Authorization"] = "Bearer " .. other
    requests = { [0] = first, wrk.format() }
  end
  function request()
    turn = 1 - turn
    return requests[turn]
  end
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\nLOAD {"requests":%d,"duration_us":%d,"bytes":%d,"p50_us":%d,"p99_us":%d,"errors":%d,"bad_status":%d}\n',
    summary.requests, summary.duration, summary.bytes,
    latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.timeout, e.status))
end
