output "task_definition_arn" {
  description = "ARN of the task definition."
  value       = aws_ecs_task_definition.this.arn
}

output "task_role_id" {
  description = "Name of the task role."
  value       = local.task_role_id
}

output "task_role_arn" {
  description = "ARN of the task role."
  value       = local.task_role_arn
}

output "execution_role_id" {
  description = "Name of the execution role."
  value       = local.execution_role_id
}

output "execution_role_arn" {
  description = "ARN of the execution role."
  value       = local.execution_role_arn
}

output "task_tags" {
  description = "Tags of the task definition. The ECS service needs `propagate_tags = \"TASK_DEFINITION\"`, so that its tasks have them too."
  value       = aws_ecs_task_definition.this.tags_all
}

output "service_token_secret_arn" {
  description = "ARN of the secret with the service's token; empty without `acl_secret_name_prefix`."
  value       = local.service_token_arn
}

output "container_definitions" {
  description = "All containers of the task."
  value       = local.container_definitions
}
