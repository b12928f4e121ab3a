# The inputs as the settings that `mesh-task render --settings` takes. Fields that are null or empty are left out.
locals {
  is_gateway = can(var.consul_ecs_config.gateway)
  uses_login = var.acls && var.acl_secret_name_prefix == ""
  agentless  = var.consul_server_hosts != ""

  consul_servers = {
    for name, value in {
      hosts           = var.consul_server_hosts
      skipServerWatch = var.skip_server_watch ? true : null
      defaults = merge(
        { tls = var.tls },
        { for name, value in { tlsServerName = var.tls_server_name } : name => value if value != "" },
      )
      http = merge({ https = var.tls }, var.http_config)
      grpc = length(var.grpc_config) > 0 ? var.grpc_config : null
    } : name => value if value != null
  }

  service = merge({
    for name, value in {
      name      = var.consul_service_name
      tags      = var.consul_service_tags
      port      = var.outbound_only ? 0 : var.port
      meta      = var.consul_service_meta
      checks    = var.checks
      namespace = var.consul_namespace
      partition = var.consul_partition
    } : name => value if try(length(value), 1) > 0
  }, try(var.consul_ecs_config.service, {}))

  proxy = merge({
    for name, value in {
      publicListenerPort = var.envoy_public_listener_port == 20000 ? null : var.envoy_public_listener_port
      upstreams          = length(var.upstreams) > 0 ? var.upstreams : null
      healthCheckPort    = local.agentless && var.envoy_readiness_port != 22000 ? var.envoy_readiness_port : null
    } : name => value if value != null
  }, try(var.consul_ecs_config.proxy, {}))

  login = merge({
    for name, value in {
      enabled = local.uses_login
      method  = var.service_token_auth_method_name == "iam-ecs-service-token" ? null : var.service_token_auth_method_name
    } : name => value if value != null
  }, try(var.consul_ecs_config.consulLogin, {}))

  # What CONSUL_ECS_CONFIG_JSON has, without `healthSyncContainers` where it follows from the containers.
  document = merge(
    { for name, value in { transparentProxy = { enabled = false } } : name => value if local.agentless && !local.is_gateway },
    { for name, value in var.consul_ecs_config : name => value if value != null },
    { bootstrapDir = "/consul" },
    { for name, value in { service = local.service } : name => value if !local.is_gateway },
    { for name, value in { proxy = local.proxy } : name => value if length(value) > 0 },
    { for name, value in { consulHTTPAddr = var.consul_http_addr } : name => value if value != "" },
    { for name, value in { consulServers = local.consul_servers } : name => value if local.agentless },
    { for name, value in { consulLogin = local.login } : name => value if local.uses_login },
  )

  # `coalesce` ends the plan with an error where a required ARN is empty.
  secrets = {
    for name, arn in {
      clientToken  = !var.acls || local.agentless ? "" : local.uses_login ? var.consul_client_token_secret_arn : coalesce(var.consul_client_token_secret_arn)
      serviceToken = local.service_token_arn
      gossipKey    = var.gossip_key_secret_arn
      ca           = var.tls ? coalesce(var.consul_server_ca_cert_arn, var.consul_ca_cert_arn) : ""
    } : name => arn if arn != ""
  }

  delay_seconds = var.application_shutdown_delay_seconds
  delay_names   = var.application_shutdown_delay_containers
}
