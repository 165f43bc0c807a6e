-- The health of an object of Driftline, for Argo CD.
local health = {status = "Progressing", message = "waiting for the controller"}
local status = obj.status
if status == nil or status.conditions == nil then return health end
-- The conditions of an older spec say nothing about this one.
if status.observedGeneration ~= nil and status.observedGeneration ~= obj.metadata.generation then return health end
local found = {}
for _, condition in ipairs(status.conditions) do found[condition.type] = condition end
local function is(name) return found[name] ~= nil and found[name].status == "True" end
if is("Failed") then return {status = "Degraded", message = found["Failed"].message} end
if is("Stalled") then return {status = "Degraded", message = found["Stalled"].message} end
if is("Complete") then return {status = "Healthy", message = found["Complete"].message} end
if is("Reconciling") then return {status = "Progressing", message = found["Reconciling"].message} end
if is("Ready") then return {status = "Healthy", message = found["Ready"].message} end
if found["Ready"] ~= nil then health.message = found["Ready"].message end
return health
