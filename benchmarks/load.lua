-- Sends the requests of a plan, and counts the responses that differ from the expected one.
local plan = dofile(os.getenv("PLAN"))
local threads = {}
local ready = {}
local number = 0
local value = nil

function setup(thread)
  table.insert(threads, thread)
  thread:set("id", #threads)
end

local function filled(text, current)
  return (text:gsub("{(%l+)}", { value = current, number = string.format("%d-%d", id, number) }))
end

local function built(current)
  local headers = {}
  for name, text in pairs(plan.headers) do
    headers[name] = filled(text, current)
  end
  return wrk.format(plan.method, plan.path, headers, plan.body and filled(plan.body, current))
end

function init()
  wrong, example = 0, ""
  -- With a chain of responses, each connection has its own thread, which has its own first value.
  value = plan.values[1 + (id - 1) % #plan.values]
  if not plan.changes then
    for _, each in ipairs(plan.values) do
      table.insert(ready, built(each))
    end
  end
end

function request()
  number = number + 1
  if plan.changes then
    return built(value)
  end
  return ready[1 + (number + id) % #ready]
end

function response(status, _, body)
  if status ~= plan.status or not body:find(plan.fragment, 1, true) then
    wrong = wrong + 1
    example = string.format("%d %s", status, body:sub(1, 200))
  end
  if plan.follow then
    value = body:match(plan.follow) or value
  end
end

function done(summary, latency)
  local wrong, example = 0, ""
  for _, thread in ipairs(threads) do
    wrong = wrong + thread:get("wrong")
    example = #example > 0 and example or thread:get("example")
  end
  local errors = summary.errors
  print(string.format(
    "RESULT %d %d %d %d %d %s",
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    wrong + errors.connect + errors.read + errors.write + errors.timeout, example
  ))
end
