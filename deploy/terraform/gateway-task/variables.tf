# The gateway. These inputs have the names of terraform-aws-consul-ecs.

variable "family" {
  description = "Family of the task definition. It is also the gateway's name in Consul, unless `consul_service_name` is set."
  type        = string
}

variable "kind" {
  description = "mesh-gateway, terminating-gateway or ingress-gateway."
  type        = string

  validation {
    condition     = contains(["mesh-gateway", "terminating-gateway", "ingress-gateway"], var.kind)
    error_message = "Expected one of mesh-gateway, terminating-gateway and ingress-gateway."
  }
}

variable "ecs_cluster_arn" {
  description = "ARN of the ECS cluster."
  type        = string
}

variable "gateway_count" {
  description = "How many tasks of the gateway run."
  type        = number
  default     = 1
}

variable "launch_type" {
  description = "FARGATE or EC2."
  type        = string
  default     = "FARGATE"
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

variable "consul_service_name" {
  description = "Name of the gateway in Consul, in lower case."
  type        = string
  default     = ""
}

variable "consul_service_tags" {
  description = "Tags of the gateway in Consul."
  type        = list(string)
  default     = []
}

variable "consul_service_meta" {
  description = "Meta of the gateway in Consul."
  type        = map(string)
  default     = {}
}

variable "consul_namespace" {
  description = "Namespace of the gateway (Consul Enterprise)."
  type        = string
  default     = ""
}

variable "consul_partition" {
  description = "Admin partition of the gateway (Consul Enterprise)."
  type        = string
  default     = ""
}

variable "lan_address" {
  description = "Address inside the datacenter. Empty: the task's."
  type        = string
  default     = ""
}

variable "lan_port" {
  description = "Port on which the gateway listens. 0: 8443."
  type        = number
  default     = 0
}

variable "listener_ports" {
  description = "For an ingress gateway: ports of its listeners, as its config entry has them. The load balancer leads to the first one."
  type        = list(number)
  default     = []
}

variable "wan_address" {
  description = "Address for other datacenters. Empty: the load balancer's name, else the task's address."
  type        = string
  default     = ""
}

variable "wan_port" {
  description = "Port for other datacenters, and of the load balancer. 0: the same as `lan_port`, or the first of `listener_ports`."
  type        = number
  default     = 0
}

variable "application_shutdown_delay_seconds" {
  description = "How many seconds the gateway's Envoy runs on after TERM, while the rest of the mesh learns of the stop. 0: 6 seconds."
  type        = number
  default     = 0
}

variable "consul_ecs_config" {
  description = "More fields of the document in docs/config.md. Fields of `gateway` given here win over the other inputs."
  type        = any
  default     = {}
}

# The load balancer: a network load balancer in front of the tasks.

variable "lb_enabled" {
  description = "Whether a network load balancer leads to the gateway."
  type        = bool
  default     = false
}

variable "lb_internal" {
  description = "Whether the load balancer has private addresses only."
  type        = bool
  default     = false
}

variable "lb_vpc_id" {
  description = "ID of the VPC; required with `lb_enabled`."
  type        = string
  default     = ""
}

variable "lb_subnets" {
  description = "IDs of the load balancer's subnets; required with `lb_enabled`."
  type        = list(string)
  default     = []
}

variable "lb_ingress_rule_cidr_blocks" {
  description = "Addresses that may reach the load balancer."
  type        = list(string)
  default     = ["0.0.0.0/0"]
}

variable "lb_create_security_group" {
  description = "Whether the module creates a security group for the tasks that lets the load balancer in."
  type        = bool
  default     = true
}

variable "lb_modify_security_group" {
  description = "Whether `lb_modify_security_group_id` gets the rule that lets the load balancer in. Then `lb_create_security_group` must be false."
  type        = bool
  default     = false
}

variable "lb_modify_security_group_id" {
  description = "ID of the security group that gets the rule."
  type        = string
  default     = ""
}

# The task and Consul, as in the module mesh-task.

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

variable "cpu_architecture" {
  description = "X86_64 or ARM64."
  type        = string
  default     = "X86_64"
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}

variable "log_configuration" {
  description = "Log configuration of the containers."
  type        = any
  default     = {}
}

variable "registry" {
  description = "Where the images of ecs-mesh are: `<registry>/<image>:<version>`."
  type        = string
  default     = ""
}

variable "images" {
  description = "Images one by one, in place of those in `registry`."
  type        = map(string)
  default     = {}
}

variable "consul_image" {
  description = "Image of the Consul agent."
  type        = string
  default     = "hashicorp/consul:1.21.4"
}

variable "retry_join" {
  description = "Addresses of Consul's servers, or cloud auto-join strings without keys, for the task's Consul agent. Required unless `consul_server_hosts` is set."
  type        = list(string)
  default     = []
}

variable "consul_server_hosts" {
  description = "Names or addresses of Consul's servers, separated by commas. If this is set, the task has no Consul agent. This input and the next four have the names of terraform-aws-consul-ecs 0.7 and later."
  type        = string
  default     = ""
}

variable "http_config" {
  description = "How a task without an agent reaches the servers' HTTP API, as `consulServers.http` in docs/config.md. `https` is `tls` unless it is set here."
  type        = any
  default     = {}
}

variable "grpc_config" {
  description = "How a task without an agent reaches the servers' gRPC, as `consulServers.grpc` in docs/config.md."
  type        = any
  default     = {}
}

variable "tls_server_name" {
  description = "Name in the servers' certificates, for a task without an agent. Empty: the host."
  type        = string
  default     = ""
}

variable "skip_server_watch" {
  description = "Whether a task without an agent uses only `consul_server_hosts`. Set it to true if the servers are behind a load balancer."
  type        = bool
  default     = false
}

variable "consul_datacenter" {
  description = "Datacenter of the task's Consul agent."
  type        = string
  default     = "dc1"
}

variable "consul_version" {
  description = "Version of Consul in `consul_image`, such as `1.8`; only needed before 1.12."
  type        = string
  default     = ""
}

variable "gossip_key_secret_arn" {
  description = "ARN of the secret with the gossip key."
  type        = string
  default     = ""
}

variable "tls" {
  description = "Whether the task speaks TLS to Consul's servers."
  type        = bool
  default     = false
}

variable "consul_server_ca_cert_arn" {
  description = "ARN of the secret with the certificate of the servers' authority; required with `tls`."
  type        = string
  default     = ""
}

variable "consul_ca_cert_arn" {
  description = "The same as `consul_server_ca_cert_arn`."
  type        = string
  default     = ""
}

variable "acls" {
  description = "Whether Consul has ACLs."
  type        = bool
  default     = false
}

variable "acl_secret_name_prefix" {
  description = "`name_prefix` of the module acl-controller. Empty: the task logs in by its IAM role."
  type        = string
  default     = ""
}

variable "consul_client_token_secret_arn" {
  description = "Output `client_token_secret_arn` of the module acl-controller."
  type        = string
  default     = ""
}

variable "create_service_token_secret" {
  description = "Whether the module creates the secret `<prefix>-<gateway>`."
  type        = bool
  default     = true
}

variable "service_token_secret_arn" {
  description = "ARN of that secret, if the module does not create it."
  type        = string
  default     = ""
}

variable "consul_http_addr" {
  description = "URL of Consul's servers; required for a login."
  type        = string
  default     = ""
}

variable "service_token_auth_method_name" {
  description = "Auth method for the login of mesh-init and health-sync."
  type        = string
  default     = "iam-ecs-service-token"
}

variable "iam_role_path" {
  description = "Path of the roles."
  type        = string
  default     = "/consul-ecs/"
}

variable "additional_task_role_policies" {
  description = "ARNs of more policies for the task role."
  type        = list(string)
  default     = []
}

variable "additional_execution_role_policies" {
  description = "ARNs of more policies for the execution role."
  type        = list(string)
  default     = []
}
