output "task_definition_arn" {
  description = "ARN of the task definition."
  value       = module.task.task_definition_arn
}

output "task_role_id" {
  description = "Name of the task role."
  value       = module.task.task_role_id
}

output "task_role_arn" {
  description = "ARN of the task role."
  value       = module.task.task_role_arn
}

output "execution_role_id" {
  description = "Name of the execution role."
  value       = module.task.execution_role_id
}

output "execution_role_arn" {
  description = "ARN of the execution role."
  value       = module.task.execution_role_arn
}

output "task_tags" {
  description = "Tags of the tasks."
  value       = module.task.task_tags
}

output "wan_address" {
  description = "The gateway's address for other datacenters; empty: the task's."
  value       = local.wan_address
}

output "wan_port" {
  description = "The gateway's port for other datacenters."
  value       = local.wan_port
}

output "lb_dns_name" {
  description = "Name of the load balancer; null without one."
  value       = var.lb_enabled ? aws_lb.this[0].dns_name : null
}

output "lb_security_group_id" {
  description = "ID of the security group of the tasks; null if the module creates none."
  value       = var.lb_enabled && var.lb_create_security_group ? aws_security_group.this[0].id : null
}

output "service_token_secret_arn" {
  description = "ARN of the secret with the gateway's token; empty without `acl_secret_name_prefix`."
  value       = module.task.service_token_secret_arn
}

output "container_definitions" {
  description = "All containers of the task."
  value       = module.task.container_definitions
}
