locals {
  lan_port    = var.lan_port != 0 ? var.lan_port : 8443
  lb_port     = length(var.listener_ports) > 0 ? var.listener_ports[0] : local.lan_port
  wan_port    = var.wan_port != 0 ? var.wan_port : local.lb_port
  wan_address = var.wan_address == "" && var.lb_enabled ? aws_lb.this[0].dns_name : var.wan_address

  gateway = merge({
    for name, value in {
      kind       = var.kind
      name       = var.consul_service_name
      tags       = var.consul_service_tags
      meta       = var.consul_service_meta
      namespace  = var.consul_namespace
      partition  = var.consul_partition
      lanAddress = { for name, value in { address = var.lan_address, port = var.lan_port } : name => value if value != "" && value != 0 }
      wanAddress = { for name, value in { address = local.wan_address, port = local.wan_port } : name => value if local.wan_address != "" }
    } : name => value if length(value) > 0
  }, try(var.consul_ecs_config.gateway, {}))
}

# A gateway is a mesh task without an app.
module "task" {
  source = "../mesh-task"

  family                             = var.family
  container_definitions              = []
  consul_ecs_config                  = merge(var.consul_ecs_config, { gateway = local.gateway })
  application_shutdown_delay_seconds = var.application_shutdown_delay_seconds
  listener_ports                     = var.listener_ports

  requires_compatibilities = var.requires_compatibilities
  cpu                      = var.cpu
  memory                   = var.memory
  cpu_architecture         = var.cpu_architecture
  tags                     = var.tags
  log_configuration        = var.log_configuration

  registry     = var.registry
  images       = var.images
  consul_image = var.consul_image

  retry_join                = var.retry_join
  consul_server_hosts       = var.consul_server_hosts
  http_config               = var.http_config
  grpc_config               = var.grpc_config
  tls_server_name           = var.tls_server_name
  skip_server_watch         = var.skip_server_watch
  consul_datacenter         = var.consul_datacenter
  consul_version            = var.consul_version
  gossip_key_secret_arn     = var.gossip_key_secret_arn
  tls                       = var.tls
  consul_server_ca_cert_arn = var.consul_server_ca_cert_arn
  consul_ca_cert_arn        = var.consul_ca_cert_arn

  acls                           = var.acls
  acl_secret_name_prefix         = var.acl_secret_name_prefix
  consul_client_token_secret_arn = var.consul_client_token_secret_arn
  create_service_token_secret    = var.create_service_token_secret
  service_token_secret_arn       = var.service_token_secret_arn
  consul_http_addr               = var.consul_http_addr
  service_token_auth_method_name = var.service_token_auth_method_name

  iam_role_path                      = var.iam_role_path
  additional_task_role_policies      = var.additional_task_role_policies
  additional_execution_role_policies = var.additional_execution_role_policies
}

resource "aws_ecs_service" "this" {
  name            = var.family
  cluster         = var.ecs_cluster_arn
  task_definition = module.task.task_definition_arn
  desired_count   = var.gateway_count
  launch_type     = var.launch_type
  propagate_tags  = "TASK_DEFINITION"
  tags            = var.tags

  network_configuration {
    subnets          = var.subnets
    security_groups  = concat(var.security_groups, aws_security_group.this[*].id)
    assign_public_ip = var.assign_public_ip
  }

  dynamic "load_balancer" {
    for_each = aws_lb_target_group.this

    content {
      target_group_arn = load_balancer.value.arn
      container_name   = var.consul_server_hosts == "" ? "sidecar-proxy" : "dataplane"
      container_port   = local.lb_port
    }
  }
}

resource "aws_lb" "this" {
  #checkov:skip=CKV_AWS_91:access logs need a bucket of yours; a network load balancer logs TLS listeners only, and Envoy has the requests
  #checkov:skip=CKV_AWS_150:`terraform destroy` must be able to delete it
  count = var.lb_enabled ? 1 : 0

  name                             = var.family
  load_balancer_type               = "network"
  internal                         = var.lb_internal
  subnets                          = var.lb_subnets
  security_groups                  = aws_security_group.lb[*].id
  enable_cross_zone_load_balancing = true
  tags                             = var.tags
}

resource "aws_lb_target_group" "this" {
  count = var.lb_enabled ? 1 : 0

  name                 = var.family
  port                 = local.lb_port
  protocol             = "TCP"
  target_type          = "ip"
  vpc_id               = var.lb_vpc_id
  deregistration_delay = 120
  tags                 = var.tags

  health_check {
    protocol = "TCP"
  }
}

resource "aws_lb_listener" "this" {
  count = var.lb_enabled ? 1 : 0

  load_balancer_arn = aws_lb.this[0].arn
  port              = local.wan_port
  protocol          = "TCP"

  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.this[0].arn
  }
}

# The load balancer's own group: clients reach it at wan_port, and it reaches the tasks at lb_port.
resource "aws_security_group" "lb" {
  count = var.lb_enabled ? 1 : 0

  name        = "${var.family}-lb"
  description = "Load balancer of the gateway ${var.family}"
  vpc_id      = var.lb_vpc_id
  tags        = var.tags
}

resource "aws_security_group_rule" "lb_ingress" {
  count = var.lb_enabled ? 1 : 0

  description       = "Clients of the gateway"
  type              = "ingress"
  from_port         = local.wan_port
  to_port           = local.wan_port
  protocol          = "tcp"
  cidr_blocks       = var.lb_ingress_rule_cidr_blocks
  security_group_id = aws_security_group.lb[0].id
}

resource "aws_security_group_rule" "lb_egress" {
  count = var.lb_enabled ? 1 : 0

  description       = "The tasks of the gateway"
  type              = "egress"
  from_port         = local.lb_port
  to_port           = local.lb_port
  protocol          = "tcp"
  cidr_blocks       = ["0.0.0.0/0"]
  security_group_id = aws_security_group.lb[0].id
}

# The tasks' group.
resource "aws_security_group" "this" {
  count = var.lb_enabled && var.lb_create_security_group ? 1 : 0

  name        = var.family
  description = "Tasks of the gateway ${var.family}"
  vpc_id      = var.lb_vpc_id
  tags        = var.tags
}

resource "aws_security_group_rule" "ingress" {
  count = var.lb_enabled && (var.lb_create_security_group || var.lb_modify_security_group) ? 1 : 0

  description              = "Load balancer of the gateway ${var.family}"
  type                     = "ingress"
  from_port                = local.lb_port
  to_port                  = local.lb_port
  protocol                 = "tcp"
  source_security_group_id = aws_security_group.lb[0].id
  security_group_id        = var.lb_create_security_group ? aws_security_group.this[0].id : var.lb_modify_security_group_id
}

resource "aws_security_group_rule" "egress" {
  #checkov:skip=CKV_AWS_382:the gateway calls Consul and every service behind it, at ports that this module does not know
  count = var.lb_enabled && var.lb_create_security_group ? 1 : 0

  description       = "Consul and the services"
  type              = "egress"
  from_port         = 0
  to_port           = 0
  protocol          = "-1"
  cidr_blocks       = ["0.0.0.0/0"]
  security_group_id = aws_security_group.this[0].id
}
