locals {
  server_dns = "${var.name}.${var.service_discovery_namespace}"

  # `coalesce` ends the plan with an error where a required ARN is empty.
  secrets = [
    for secret in [
      { name = "CONSUL_GOSSIP_KEY", valueFrom = var.gossip_key_secret_arn },
      { name = "CONSUL_BOOTSTRAP_TOKEN", valueFrom = var.acls ? coalesce(var.bootstrap_token_arn) : "" },
      { name = "CONSUL_CACERT_PEM", valueFrom = var.tls ? coalesce(var.ca_cert_arn) : "" },
      { name = "CONSUL_CAKEY_PEM", valueFrom = var.tls ? coalesce(var.ca_key_arn) : "" },
    ] : secret if secret.valueFrom != ""
  ]

  container = {
    name                   = "consul-server"
    image                  = var.consul_image
    essential              = true
    entryPoint             = ["/bin/sh", "-ec"]
    command                = [file("${path.module}/server.sh")]
    user                   = "100:1000"
    readonlyRootFilesystem = true
    linuxParameters        = { capabilities = { drop = ["ALL"] } }
    environment            = [{ name = "DATACENTER", value = var.datacenter }, { name = "SERVER_NAME", value = local.server_dns }]
    secrets                = local.secrets
    mountPoints            = [{ sourceVolume = "data", containerPath = "/consul/data" }]
    portMappings           = [for rule in local.ports : { containerPort = rule.port, protocol = rule.protocol }]
    logConfiguration       = var.log_configuration
  }
}

resource "aws_ecs_task_definition" "this" {
  family                   = var.name
  requires_compatibilities = var.requires_compatibilities
  network_mode             = "awsvpc"
  cpu                      = var.cpu
  memory                   = var.memory
  task_role_arn            = aws_iam_role.task.arn
  execution_role_arn       = aws_iam_role.execution.arn
  container_definitions    = jsonencode([{ for name, value in local.container : name => value if value != null }])
  tags                     = var.tags

  runtime_platform {
    operating_system_family = "LINUX"
    cpu_architecture        = var.cpu_architecture
  }

  volume {
    name = "data"
  }
}

resource "aws_ecs_service" "this" {
  name                               = var.name
  cluster                            = var.ecs_cluster_arn
  task_definition                    = aws_ecs_task_definition.this.arn
  desired_count                      = 1
  launch_type                        = var.launch_type
  wait_for_steady_state              = var.wait_for_steady_state
  deployment_minimum_healthy_percent = 0
  deployment_maximum_percent         = 100
  tags                               = var.tags

  network_configuration {
    subnets          = var.subnet_ids
    security_groups  = [aws_security_group.this.id]
    assign_public_ip = var.assign_public_ip
  }

  service_registries {
    registry_arn   = aws_service_discovery_service.this.arn
    container_name = "consul-server"
  }
}

resource "aws_service_discovery_private_dns_namespace" "this" {
  name        = var.service_discovery_namespace
  description = "Name of the Consul server"
  vpc         = var.vpc_id
  tags        = var.tags
}

resource "aws_service_discovery_service" "this" {
  name = var.name
  tags = var.tags

  dns_config {
    namespace_id = aws_service_discovery_private_dns_namespace.this.id

    dns_records {
      ttl  = 10
      type = "A"
    }
  }

  health_check_custom_config {
    failure_threshold = 1
  }
}

resource "aws_security_group" "this" {
  name        = var.name
  description = "Consul server ${var.name}"
  vpc_id      = var.vpc_id
  tags        = var.tags
}

locals {
  # RPC, gossip, the API, and gRPC for tasks without an agent.
  ports = [
    { protocol = "tcp", port = 8300 },
    { protocol = "tcp", port = 8301 },
    { protocol = "udp", port = 8301 },
    { protocol = "tcp", port = var.tls ? 8501 : 8500 },
    { protocol = "tcp", port = var.tls ? 8503 : 8502 },
  ]
  rules = [
    for pair in setproduct(range(length(var.client_security_group_ids)), range(length(local.ports))) :
    merge(local.ports[pair[1]], { group = pair[0] })
  ]
}

resource "aws_security_group_rule" "ingress" {
  count = length(local.rules)

  description              = "Tasks of the mesh"
  type                     = "ingress"
  protocol                 = local.rules[count.index].protocol
  from_port                = local.rules[count.index].port
  to_port                  = local.rules[count.index].port
  source_security_group_id = var.client_security_group_ids[local.rules[count.index].group]
  security_group_id        = aws_security_group.this.id
}

resource "aws_security_group_rule" "egress" {
  #checkov:skip=CKV_AWS_382:the server pulls its image, and gossips with every task that has an agent
  description       = "Images, logs, secrets, and gossip with the tasks"
  type              = "egress"
  from_port         = 0
  to_port           = 0
  protocol          = "-1"
  cidr_blocks       = ["0.0.0.0/0"]
  security_group_id = aws_security_group.this.id
}
