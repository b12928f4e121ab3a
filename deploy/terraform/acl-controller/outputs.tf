output "client_token_secret_arn" {
  description = "ARN of the secret with the token of all Consul agents: `consul_client_token_secret_arn` of the module mesh-task. Empty without `token_secrets`."
  value       = var.token_secrets ? aws_secretsmanager_secret.client_token[0].arn : ""
}

output "name_prefix" {
  description = "The prefix of the secrets: `acl_secret_name_prefix` of the module mesh-task. Empty without `token_secrets`."
  value       = var.token_secrets ? var.name_prefix : ""
}

output "ecs_service_name" {
  description = "Name of the controller's ECS service."
  value       = aws_ecs_service.this.name
}

output "task_definition_arn" {
  description = "ARN of the controller's task definition."
  value       = aws_ecs_task_definition.this.arn
}

output "task_role_arn" {
  description = "ARN of the controller's task role."
  value       = aws_iam_role.task.arn
}

output "execution_role_arn" {
  description = "ARN of the controller's execution role."
  value       = aws_iam_role.execution.arn
}
