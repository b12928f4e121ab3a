# Inputs with the names of terraform-aws-consul-ecs.

variable "ecs_cluster_arn" {
  description = "ARN of the ECS cluster whose services get tokens. The controller runs in it too."
  type        = string
}

variable "name_prefix" {
  description = "What the names of the secrets, the roles and the ECS service begin with. No other cluster may have this prefix, nor one that begins with this prefix and `-`."
  type        = string
}

variable "consul_server_http_addr" {
  description = "URLs of Consul's servers, with commas between them."
  type        = string
}

variable "consul_bootstrap_token_secret_arn" {
  description = "ARN of the secret with the controller's token. Better than the bootstrap token is one with the rules in the README of the crate acl-controller."
  type        = string
}

variable "consul_server_ca_cert_arn" {
  description = "ARN of the secret with the certificate of the servers' authority, for https."
  type        = string
  default     = ""
}

variable "consul_ca_cert_arn" {
  description = "The same as `consul_server_ca_cert_arn`, under its name in terraform-aws-consul-ecs 0.7 and later."
  type        = string
  default     = ""
}

variable "subnets" {
  description = "IDs of the subnets in which the tasks run."
  type        = list(string)
}

variable "security_groups" {
  description = "IDs of the security groups of the tasks."
  type        = list(string)
  default     = []
}

variable "assign_public_ip" {
  description = "Whether the tasks have public addresses. Without a NAT gateway, tasks in a public subnet need them to pull images."
  type        = bool
  default     = false
}

variable "launch_type" {
  description = "FARGATE or EC2."
  type        = string
  default     = "FARGATE"
}

variable "requires_compatibilities" {
  description = "Launch types of the task."
  type        = list(string)
  default     = ["EC2", "FARGATE"]
}

variable "log_configuration" {
  description = "Log configuration of the container, as in a container definition of ECS."
  type        = any
  default     = null
}

variable "iam_role_path" {
  description = "Path of the roles, and with `auth_method` also of the roles of the tasks that log in."
  type        = string
  default     = "/consul-ecs/"
}

variable "additional_execution_role_policies" {
  description = "ARNs of more policies for the execution role."
  type        = list(string)
  default     = []
}

# Inputs that only ecs-mesh has.

variable "registry" {
  description = "Where the images of ecs-mesh are: `<registry>/acl-controller:<version>`."
  type        = string
  default     = ""
}

variable "image" {
  description = "The image of acl-controller, in place of the one in `registry`."
  type        = string
  default     = ""
}

variable "cpu_architecture" {
  description = "X86_64 or ARM64."
  type        = string
  default     = "X86_64"
}

variable "agentless" {
  description = "Whether the cluster has tasks without a Consul agent."
  type        = bool
  default     = false
}

variable "auth_method" {
  description = "The auth method by which tasks without an agent log in, such as `iam-ecs-service-token`. The controller sets it up. It needs `agentless`."
  type        = string
  default     = ""
}

variable "token_secrets" {
  description = "Whether services and Consul agents get their tokens from Secrets Manager. With false, no task may have an agent, and all tasks log in; the controller then has no rights in Secrets Manager."
  type        = bool
  default     = true
}

variable "controller_count" {
  description = "How many controllers run. One works; the others stand by."
  type        = number
  default     = 2
}

variable "environment" {
  description = "More variables of acl-controller, such as ACL_CONTROLLER_ROTATE_AFTER = \"30days\"."
  type        = map(string)
  default     = {}
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}
