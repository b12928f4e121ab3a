# The containers of the mesh task: what `mesh-task render` makes of the same settings. A test compares both.
locals {
  version = "0.1.0"

  images = {
    for name, image in {
      meshInit      = "mesh-init"
      sidecarProxy  = "sidecar-proxy"
      meshDataplane = "mesh-dataplane"
      healthSync    = "health-sync"
      appEntrypoint = "app-entrypoint"
    } : name => lookup(var.images, name, "${var.registry}/${image}:${local.version}")
  }

  # The app's containers.
  apps = [for container in var.container_definitions : { for name, value in container : name => value if value != null }]

  log_routers = [for container in local.apps : container.name if can(container.firelensConfiguration)]

  awaited = flatten([
    for container in local.apps : [
      for on in try(container.dependsOn, []) : on.containerName if contains(["SUCCESS", "COMPLETE"], on.condition)
    ]
  ])

  delayed = [
    for container in local.apps : container.name if alltrue([
      local.delay_seconds > 0,
      !local.is_gateway,
      !contains(local.log_routers, container.name),
      length(local.delay_names) > 0 ? contains(local.delay_names, container.name) : !contains(local.awaited, container.name),
      basename(try(container.entryPoint[0], "")) != "app-entrypoint",
    ])
  ]

  # app-entrypoint takes the place of the image's entry point, so ECS must know that one: a container with a delay and
  # without an `entryPoint` ends the plan with an error here.
  entry_points = {
    for container in local.apps : container.name => concat(
      ["/ecs-mesh/app-entrypoint", "--shutdown-delay", "${local.delay_seconds}s"],
      ["--stop-timeout", "${try(container.stopTimeout, 30)}s"],
      [for word in container.entryPoint : word if length(container.entryPoint) > 1 || word != ""],
    ) if contains(local.delayed, container.name)
  }

  # The container with Envoy, for which the apps wait, and the prefix of its variables.
  proxy_name      = local.agentless ? "dataplane" : "sidecar-proxy"
  proxy_variables = local.agentless ? "MESH_DATAPLANE" : "ENVOY_ENTRYPOINT"

  depends_on = {
    for container in local.apps : container.name => concat(
      [
        for on in try(container.dependsOn, []) : {
          containerName = on.containerName
          condition     = on.containerName == local.proxy_name ? "HEALTHY" : on.condition
        } if on.containerName != "app-entrypoint" || !contains(local.delayed, container.name)
      ],
      [
        for name in [local.proxy_name] : { containerName = name, condition = "HEALTHY" }
        if !contains([for on in try(container.dependsOn, []) : on.containerName], name)
      ],
      [
        for name in ["app-entrypoint"] : { containerName = name, condition = "SUCCESS" }
        if contains(local.delayed, container.name)
      ],
    )
  }

  app_containers = [
    for container in local.apps : merge(concat(
      [container],
      [
        for waiting in [{ dependsOn = local.depends_on[container.name] }] : waiting
        if !contains(local.log_routers, container.name)
      ],
      [
        for wrapped in [{
          entryPoint = try(local.entry_points[container.name], [])
          mountPoints = concat(
            try(container.mountPoints, []),
            [{ sourceVolume = "app-entrypoint", containerPath = "/ecs-mesh", readOnly = true }],
          )
        }] : wrapped if contains(local.delayed, container.name)
      ],
    )...)
  ]

  # The sidecars.
  has_checks = length(try(local.document.service.checks, [])) > 0
  healthy    = [for container in local.apps : container.name if can(container.healthCheck) && !can(container.firelensConfiguration)]
  document_json = jsonencode(merge(
    { for name, value in { healthSyncContainers = local.healthy } : name => value if length(value) > 0 && !local.is_gateway && !local.has_checks },
    local.document,
  ))

  # A secret of acl-controller holds JSON, with the token under `token`.
  value_from = {
    for name, arn in local.secrets : name =>
    contains(["clientToken", "serviceToken"], name) && can(regex("^([^:]*:){2}secretsmanager(:[^:]*){4}$", arn)) ? "${arn}:token::" : arn
  }
  client_secrets = [
    for secret in [["CONSUL_CLIENT_TOKEN", "clientToken"], ["CONSUL_GOSSIP_KEY", "gossipKey"], ["CONSUL_CACERT_PEM", "ca"]] :
    { name = secret[0], valueFrom = local.value_from[secret[1]] } if contains(keys(local.value_from), secret[1])
  ]
  # With a login there is no `serviceToken`.
  token_secret = [["CONSUL_HTTP_TOKEN", "serviceToken"]]
  https_ca     = local.agentless ? [["CONSUL_HTTPS_CACERT_PEM", "ca"]] : local.uses_login ? [["CONSUL_CACERT_PEM", "ca"]] : []
  grpc_ca      = local.agentless ? [["CONSUL_GRPC_CACERT_PEM", "ca"]] : []
  service_secrets = {
    for container, secrets in {
      meshInit   = concat(local.token_secret, local.https_ca, local.grpc_ca)
      dataplane  = local.token_secret
      healthSync = concat(local.token_secret, local.https_ca)
      } : container => [
      for secret in secrets : { name = secret[0], valueFrom = local.value_from[secret[1]] } if contains(keys(local.value_from), secret[1])
    ]
  }

  partition      = local.is_gateway ? try(local.document.gateway.partition, "") : try(local.service.partition, "")
  namespace      = local.is_gateway ? try(local.document.gateway.namespace, "") : try(local.service.namespace, "")
  log_level      = [for level in [try(local.document.logLevel, "")] : { name = "LOG_LEVEL", value = lower(level) } if level != ""]
  client_login   = local.uses_login && !contains(keys(local.secrets), "clientToken")
  listener_port  = try(local.proxy.publicListenerPort, 0) != 0 ? local.proxy.publicListenerPort : 20000
  gateway_port   = try(local.document.gateway.lanAddress.port, 0) != 0 ? local.document.gateway.lanAddress.port : 8443
  proxy_port     = local.is_gateway ? local.gateway_port : local.listener_port
  has_stop_limit = length(var.requires_compatibilities) == 0 || contains(var.requires_compatibilities, "FARGATE")
  # Envoy ends after the last app, or after a gateway's own delay.
  proxy_stop_timeout = max(concat(
    [40],
    [for container in local.apps : try(container.stopTimeout, 30) + 10],
    [for delay in [local.delay_seconds + 10] : delay if local.is_gateway],
  )...)

  # Without an agent, health-sync deregisters the task after Envoy has ended.
  limited_proxy_stop_timeout = local.has_stop_limit ? min(local.proxy_stop_timeout, 120) : local.proxy_stop_timeout
  health_sync_stop_timeout   = !local.agentless ? 30 : local.has_stop_limit ? min(local.proxy_stop_timeout + 10, 120) : local.proxy_stop_timeout + 10

  sidecars = [
    {
      name    = "consul-config"
      image   = local.images.meshInit
      command = ["agent-config"]
      environment = concat(
        [for variable in [
          { name = "CONSUL_RETRY_JOIN", value = local.agentless ? "" : coalesce(join(",", var.retry_join)) },
          { name = "CONSUL_DATACENTER", value = var.consul_datacenter },
          { name = "MESH_INIT_CONSUL_VERSION", value = var.consul_version },
          { name = "CONSUL_PARTITION", value = local.partition },
        ] : variable if variable.value != ""],
        local.log_level,
        [for variable in [
          { name = "CONSUL_LOGIN", value = "true" },
          { name = "CONSUL_HTTP_ADDR", value = var.consul_http_addr },
          { name = "CONSUL_LOGIN_INCLUDE_ENTITY", value = try(local.login.includeEntity, true) ? "" : "false" },
          { name = "CONSUL_LOGIN_REGION", value = try(local.login.region, "") },
          { name = "CONSUL_LOGIN_STS_ENDPOINT", value = try(local.login.stsEndpoint, "") },
          { name = "CONSUL_LOGIN_SERVER_ID", value = try(local.login.serverIdHeaderValue, "") },
        ] : variable if local.client_login && variable.value != ""],
      )
      secrets = local.client_secrets
      mountPoints = [for mount in [
        { sourceVolume = "mesh", containerPath = "/consul" },
        { sourceVolume = "consul-config", containerPath = "/consul/config" },
      ] : mount if local.client_login || mount.sourceVolume != "mesh"]
    },
    {
      name      = "consul-client"
      image     = var.consul_image
      command   = ["consul", "agent", "-config-dir=/consul/config"]
      essential = true
      # Consul's own user, in the group that may read what consul-config wrote.
      user              = "100:10001"
      cpu               = 32
      memoryReservation = 128
      environment       = [{ name = "CONSUL_DISABLE_PERM_MGMT", value = "1" }]
      mountPoints = [
        { sourceVolume = "consul-config", containerPath = "/consul/config", readOnly = true },
        { sourceVolume = "consul-data", containerPath = "/consul/data" },
      ]
      dependsOn   = [{ containerName = "consul-config", condition = "SUCCESS" }]
      stopTimeout = 20
    },
    {
      name        = "mesh-init"
      image       = local.images.meshInit
      environment = [{ name = "CONSUL_ECS_CONFIG_JSON", value = local.document_json }]
      secrets     = local.service_secrets.meshInit
      mountPoints = [{ sourceVolume = "mesh", containerPath = "/consul" }]
      dependsOn   = [for name in ["consul-client"] : { containerName = name, condition = "START" } if !local.agentless]
    },
    {
      name  = local.proxy_name
      image = local.agentless ? local.images.meshDataplane : local.images.sidecarProxy
      command = concat(
        ["envoy"],
        local.agentless ? [] : ["--config-path", "/consul/envoy-bootstrap.json"],
        ["--disable-hot-restart", "--concurrency", "2", "--drain-strategy", "immediate"],
      )
      essential = true
      # Envoy's user, in the group that may read the bootstrap.
      user              = "101:10001"
      cpu               = 64
      memoryReservation = 96
      environment = concat(
        [for variable in [
          { name = "${local.proxy_variables}_DRAIN", value = "true" },
          { name = "${local.proxy_variables}_GATEWAY_DELAY", value = local.is_gateway ? "${local.delay_seconds > 0 ? local.delay_seconds : 6}s" : "" },
          # An ingress gateway has no listener before it has a config entry.
          { name = "${local.proxy_variables}_LISTENER_TIMEOUT", value = try(local.document.gateway.kind, "") == "ingress-gateway" ? "0s" : "" },
          # Without GRACE, Envoy gets TERM after 120 s, even if an app still runs. Envoy's end takes up to 10 s.
          { name = "${local.proxy_variables}_GRACE", value = local.limited_proxy_stop_timeout > 130 ? "${local.limited_proxy_stop_timeout - 10}s" : "" },
          { name = "${local.proxy_variables}_IGNORE_CONTAINERS", value = join(",", local.log_routers) },
        ] : variable if variable.value != ""],
        local.log_level,
      )
      # mesh-dataplane speaks to the servers. envoy-entrypoint needs no token.
      secrets = local.agentless ? local.service_secrets.dataplane : []
      # mesh-dataplane writes Envoy's bootstrap.
      mountPoints  = [merge({ sourceVolume = "mesh", containerPath = "/consul" }, { for name, value in { readOnly = true } : name => value if !local.agentless })]
      portMappings = [for port in concat([local.proxy_port], var.listener_ports) : { containerPort = port, protocol = "tcp" }]
      ulimits      = [{ name = "nofile", softLimit = 1048576, hardLimit = 1048576 }]
      healthCheck = {
        command = local.agentless ? (
          ["CMD", "/usr/local/bin/mesh-dataplane", "healthy"]
          ) : (
          ["CMD", "/usr/local/bin/envoy-entrypoint", "dial", "localhost:${local.proxy_port}"]
        )
        interval    = 5
        timeout     = 2
        retries     = 3
        startPeriod = 300
      }
      dependsOn = concat(
        [{ containerName = "mesh-init", condition = "SUCCESS" }],
        [for name in ["consul-client"] : { containerName = name, condition = "START" } if !local.agentless],
      )
      stopTimeout = local.limited_proxy_stop_timeout
    },
    {
      name      = "health-sync"
      image     = local.images.healthSync
      essential = true
      environment = concat(
        [{ name = "CONSUL_ECS_CONFIG_JSON", value = local.document_json }],
        [for wait in [local.health_sync_stop_timeout - 10] : { name = "HEALTH_SYNC_DATAPLANE_WAIT", value = "${wait}s" } if local.agentless],
      )
      secrets     = local.service_secrets.healthSync
      mountPoints = [{ sourceVolume = "mesh", containerPath = "/consul" }]
      healthCheck = {
        command     = ["CMD", "/health-sync", "healthy", "--in-mesh"]
        interval    = 5
        timeout     = 5
        retries     = 3
        startPeriod = 300
      }
      restartPolicy = { enabled = true, restartAttemptPeriod = 60 }
      dependsOn     = [{ containerName = "mesh-init", condition = "SUCCESS" }]
      stopTimeout   = local.health_sync_stop_timeout
    },
    {
      name        = "app-entrypoint"
      image       = local.images.appEntrypoint
      command     = ["install", "/shared"]
      mountPoints = [{ sourceVolume = "app-entrypoint", containerPath = "/shared" }]
    },
  ]

  has_delay = length(local.delayed) > 0
  sidecar_names = concat(
    [for name in ["consul-config", "consul-client"] : name if !local.agentless],
    ["mesh-init", local.proxy_name, "health-sync"],
    [for name in ["app-entrypoint"] : name if local.has_delay],
  )

  container_definitions = concat(local.app_containers, [
    for sidecar in local.sidecars : {
      for name, value in merge({
        essential              = false
        user                   = "10001:10001"
        cpu                    = 8
        memoryReservation      = 16
        dockerLabels           = { "ecs-mesh.rendered-by" = "mesh-task" }
        linuxParameters        = { capabilities = { drop = ["ALL"] } }
        readonlyRootFilesystem = true
        logConfiguration       = var.log_configuration
      }, sidecar) : name => value if value != null && try(length(value), 1) > 0
    } if contains(local.sidecar_names, sidecar.name)
  ])

  sidecar_volumes = concat(local.agentless ? ["mesh"] : ["mesh", "consul-config", "consul-data"], [for name in ["app-entrypoint"] : name if local.has_delay])

  # acl-controller finds the task by these tags.
  service_name = lower(coalesce(try(local.document.gateway.name, local.service.name, null), var.family))
  mesh_tags = {
    for name, value in {
      "consul.hashicorp.com/mesh"         = "true"
      "consul.hashicorp.com/service-name" = local.service_name
      "consul.hashicorp.com/namespace"    = local.namespace
      "consul.hashicorp.com/partition"    = local.partition
      "consul.hashicorp.com/gateway-kind" = try(local.document.gateway.kind, "")
    } : name => value if value != ""
  }
}
