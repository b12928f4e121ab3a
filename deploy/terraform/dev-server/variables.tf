# Inputs with the names of terraform-aws-consul-ecs.

variable "name" {
  description = "Name of the ECS service, of the task family and of the server in DNS."
  type        = string
  default     = "server"
}

variable "ecs_cluster_arn" {
  description = "ARN of the ECS cluster."
  type        = string
}

variable "vpc_id" {
  description = "ID of the VPC of the server."
  type        = string
}

variable "subnet_ids" {
  description = "IDs of the subnets in which the server may run."
  type        = list(string)
}

variable "assign_public_ip" {
  description = "Whether the server has a public address. Without a NAT gateway, a task in a public subnet needs it to pull images."
  type        = bool
  default     = false
}

variable "launch_type" {
  description = "FARGATE or EC2."
  type        = string
  default     = "EC2"
}

variable "requires_compatibilities" {
  description = "Launch types of the task."
  type        = list(string)
  default     = ["EC2", "FARGATE"]
}

variable "cpu" {
  description = "CPU units of the task."
  type        = number
  default     = 256
}

variable "memory" {
  description = "Memory of the task in MiB."
  type        = number
  default     = 512
}

variable "consul_image" {
  description = "Image of Consul. It needs a shell."
  type        = string
  default     = "hashicorp/consul:1.21.4"
}

variable "log_configuration" {
  description = "Log configuration of the container, as in a container definition of ECS."
  type        = any
  default     = null
}

variable "service_discovery_namespace" {
  description = "The DNS zone of the server's name in the VPC; required. The server is `<name>.<service_discovery_namespace>`."
  type        = string
}

variable "datacenter" {
  description = "Datacenter of the server."
  type        = string
  default     = "dc1"
}

variable "tls" {
  description = "Whether the server speaks TLS. Then `ca_cert_arn` and `ca_key_arn` are required."
  type        = bool
  default     = false
}

variable "ca_cert_arn" {
  description = "ARN of the secret with the certificate of the authority."
  type        = string
  default     = ""
}

variable "ca_key_arn" {
  description = "ARN of the secret with the key of the authority. The server makes its own certificate with it at each start."
  type        = string
  default     = ""
}

variable "gossip_key_secret_arn" {
  description = "ARN of the secret with the gossip key. Empty: gossip is not encrypted."
  type        = string
  default     = ""
}

variable "acls" {
  description = "Whether the server has ACLs with the default policy deny. Then `bootstrap_token_arn` is required."
  type        = bool
  default     = false
}

variable "bootstrap_token_arn" {
  description = "ARN of the secret with the bootstrap token, a UUID."
  type        = string
  default     = ""
}

variable "wait_for_steady_state" {
  description = "Whether Terraform waits until the ECS service is stable."
  type        = bool
  default     = false
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}

# Inputs that only ecs-mesh has.

variable "client_security_group_ids" {
  description = "IDs of the security groups of the tasks that reach the server."
  type        = list(string)
  default     = []
}

variable "cpu_architecture" {
  description = "X86_64 or ARM64."
  type        = string
  default     = "X86_64"
}

variable "iam_role_path" {
  description = "Path of the roles."
  type        = string
  default     = "/consul-ecs/"
}
