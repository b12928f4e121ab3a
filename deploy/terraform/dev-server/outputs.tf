output "ecs_service_name" {
  description = "Name of the server's ECS service."
  value       = aws_ecs_service.this.name
}

output "security_group_id" {
  description = "ID of the server's security group."
  value       = aws_security_group.this.id
}

output "server_dns" {
  description = "The server's name in DNS: `retry_join` of the module mesh-task."
  value       = local.server_dns
}

output "http_addr" {
  description = "URL of the server's API: `consul_server_http_addr` of the module acl-controller."
  value       = var.tls ? "https://${local.server_dns}:8501" : "http://${local.server_dns}:8500"
}

output "ca_cert_arn" {
  description = "ARN of the secret with the certificate of the authority; null without TLS."
  value       = var.tls ? var.ca_cert_arn : null
}

output "bootstrap_token_secret_arn" {
  description = "ARN of the secret with the bootstrap token; null without ACLs."
  value       = var.acls ? var.bootstrap_token_arn : null
}

output "gossip_key_arn" {
  description = "ARN of the secret with the gossip key; null without one."
  value       = var.gossip_key_secret_arn != "" ? var.gossip_key_secret_arn : null
}
