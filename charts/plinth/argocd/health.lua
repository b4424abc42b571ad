-- Health of a PretrainJob, FineTuneJob or ModelService for Argo CD: what `obj` holds comes in, {status, message} goes out.
-- It goes into argocd-cm once for each kind, as resource.customizations.health.plinth.dev_PretrainJob and so on.

local status = obj.status
if status == nil or status.conditions == nil then
  return {status = "Progressing", message = "Plinth has not seen it yet"}
end
if status.observedGeneration ~= nil and obj.metadata.generation ~= nil
    and status.observedGeneration < obj.metadata.generation then
  return {status = "Progressing", message = "Plinth has not seen the last change yet"}
end

local holds = {}
for _, condition in ipairs(status.conditions) do
  holds[condition.type] = condition.status == "True"
end

local message = status.phase or ""
if status.reason ~= nil and status.reason ~= "" then
  message = message .. " (" .. status.reason .. ")"
end
if status.message ~= nil and status.message ~= "" then
  message = message .. ": " .. status.message
end

if holds["Suspended"] then
  return {status = "Suspended", message = message}
end
if holds["Stalled"] or status.phase == "Degraded" then
  return {status = "Degraded", message = message}
end
if holds["Reconciling"] then
  return {status = "Progressing", message = message}
end
if holds["Ready"] then
  return {status = "Healthy", message = message}
end
return {status = "Progressing", message = message}
