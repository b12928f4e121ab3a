resource "aws_ecs_task_definition" "this" {
  #checkov:skip=CKV_AWS_97:a volume in EFS is encrypted in transit unless the caller says otherwise
  family                   = var.family
  requires_compatibilities = var.requires_compatibilities
  network_mode             = "awsvpc"
  cpu                      = var.cpu
  memory                   = var.memory
  task_role_arn            = local.task_role_arn
  execution_role_arn       = local.execution_role_arn
  container_definitions    = jsonencode(local.container_definitions)
  tags                     = merge(var.tags, local.mesh_tags)

  runtime_platform {
    operating_system_family = "LINUX"
    cpu_architecture        = var.cpu_architecture
  }

  dynamic "volume" {
    for_each = concat(var.volumes, [for name in local.sidecar_volumes : { name = name }])

    content {
      name      = volume.value.name
      host_path = try(volume.value.host_path, null)

      dynamic "docker_volume_configuration" {
        for_each = [for docker in [try(volume.value.docker_volume_configuration, null)] : docker if docker != null]

        content {
          scope         = try(docker_volume_configuration.value.scope, null)
          autoprovision = try(docker_volume_configuration.value.autoprovision, null)
          driver        = try(docker_volume_configuration.value.driver, null)
          driver_opts   = try(docker_volume_configuration.value.driver_opts, null)
          labels        = try(docker_volume_configuration.value.labels, null)
        }
      }

      dynamic "efs_volume_configuration" {
        for_each = [for efs in [try(volume.value.efs_volume_configuration, null)] : efs if efs != null]

        content {
          file_system_id          = efs_volume_configuration.value.file_system_id
          root_directory          = try(efs_volume_configuration.value.root_directory, null)
          transit_encryption      = try(efs_volume_configuration.value.transit_encryption, "ENABLED")
          transit_encryption_port = try(efs_volume_configuration.value.transit_encryption_port, null)

          dynamic "authorization_config" {
            for_each = [for access in [try(efs_volume_configuration.value.authorization_config, null)] : access if access != null]

            content {
              access_point_id = try(authorization_config.value.access_point_id, null)
              iam             = try(authorization_config.value.iam, null)
            }
          }
        }
      }
    }
  }
}

# acl-controller writes the token into it. Terraform gives the secret no value and so never sees the token.
resource "aws_secretsmanager_secret" "service_token" {
  #checkov:skip=CKV_AWS_149:encrypted with the account's key of Secrets Manager; for a key of your own give service_token_secret_arn
  #checkov:skip=CKV2_AWS_57:acl-controller rotates the token with --rotate-after
  count = local.creates_secret ? 1 : 0

  name                    = "${var.acl_secret_name_prefix}-${local.service_name}"
  recovery_window_in_days = 0
  tags                    = var.tags
}

locals {
  uses_secrets   = var.acls && var.acl_secret_name_prefix != ""
  creates_secret = local.uses_secrets && var.create_service_token_secret
  service_token_arn = (!local.uses_secrets ? ""
    : local.creates_secret ? aws_secretsmanager_secret.service_token[0].arn : coalesce(var.service_token_secret_arn)
  )
}
