locals {
  version = "0.1.0"
  name    = "${var.name_prefix}-acl-controller"
  ca      = var.consul_server_ca_cert_arn != "" ? var.consul_server_ca_cert_arn : var.consul_ca_cert_arn

  # arn:aws:ecs:REGION:ACCOUNT:cluster/NAME
  cluster      = split(":", var.ecs_cluster_arn)
  partition    = local.cluster[1]
  region       = local.cluster[3]
  account      = local.cluster[4]
  cluster_name = trimprefix(local.cluster[5], "cluster/")

  container = {
    name                   = "acl-controller"
    image                  = var.image != "" ? var.image : "${var.registry}/acl-controller:${local.version}"
    essential              = true
    user                   = "10001:10001"
    readonlyRootFilesystem = true
    linuxParameters        = { capabilities = { drop = ["ALL"] } }
    cpu                    = 32
    memoryReservation      = 64
    stopTimeout            = 30
    environment = [
      for name, value in merge(
        { ACL_CONTROLLER_CLUSTER = var.ecs_cluster_arn, CONSUL_HTTP_ADDR = var.consul_server_http_addr },
        var.token_secrets ? { ACL_CONTROLLER_SECRET_NAME_PREFIX = var.name_prefix } : {},
        var.agentless ? { ACL_CONTROLLER_AGENTLESS = "true" } : {},
        var.auth_method != "" ? { ACL_CONTROLLER_AUTH_METHOD = var.auth_method, ACL_CONTROLLER_IAM_ROLE_PATH = var.iam_role_path } : {},
        var.environment,
      ) : { name = name, value = value }
    ]
    secrets = [
      for secret in [["CONSUL_HTTP_TOKEN", var.consul_bootstrap_token_secret_arn], ["CONSUL_CACERT_PEM", local.ca]] :
      { name = secret[0], valueFrom = secret[1] } if secret[1] != ""
    ]
    portMappings     = [{ containerPort = 9641, protocol = "tcp" }]
    logConfiguration = var.log_configuration
  }
}

resource "aws_ecs_task_definition" "this" {
  family                   = local.name
  requires_compatibilities = var.requires_compatibilities
  network_mode             = "awsvpc"
  cpu                      = 256
  memory                   = 512
  task_role_arn            = aws_iam_role.task.arn
  execution_role_arn       = aws_iam_role.execution.arn
  container_definitions    = jsonencode([{ for name, value in local.container : name => value if value != null }])
  tags                     = var.tags

  runtime_platform {
    operating_system_family = "LINUX"
    cpu_architecture        = var.cpu_architecture
  }
}

resource "aws_ecs_service" "this" {
  name            = local.name
  cluster         = var.ecs_cluster_arn
  task_definition = aws_ecs_task_definition.this.arn
  desired_count   = var.controller_count
  launch_type     = var.launch_type
  tags            = var.tags

  network_configuration {
    subnets          = var.subnets
    security_groups  = var.security_groups
    assign_public_ip = var.assign_public_ip
  }
}

# The controller writes the agents' token into it. Terraform gives the secret no value and so never sees the token.
resource "aws_secretsmanager_secret" "client_token" {
  #checkov:skip=CKV_AWS_149:encrypted with the account's key of Secrets Manager, so that the controller needs no rights on a key
  #checkov:skip=CKV2_AWS_57:the controller makes the token anew if someone deletes it; an agent's token gives no right on a service
  count = var.token_secrets ? 1 : 0

  name                    = "${var.name_prefix}-consul-client-token"
  recovery_window_in_days = 0
  tags                    = var.tags
}
