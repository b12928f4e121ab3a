# The task. These inputs have the names of terraform-aws-consul-ecs.

variable "family" {
  description = "Family of the task definition. In lower case it is also the service's name, unless `consul_service_name` is set."
  type        = string
}

variable "container_definitions" {
  description = "The app's containers, as a list of container definitions of ECS. The module adds the sidecars."
  # Not list(any): that would make all containers have the same fields.
  type = any

  validation {
    condition = length(setintersection(
      [for container in var.container_definitions : container.name],
      ["app-entrypoint", "consul-client", "consul-config", "consul-dataplane", "consul-ecs-control-plane", "consul-ecs-health-sync", "consul-ecs-mesh-init", "dataplane", "envoy-entrypoint", "health-sync", "mesh-init", "sidecar-proxy"]
    )) == 0
    error_message = "A container has the name of a sidecar: give it another name."
  }

  validation {
    condition = alltrue(flatten([
      for container in var.container_definitions : [
        for mapping in try(container.portMappings, []) :
        !contains([19000, 8500, 8501, 8502, 8600, 8301], try(mapping.containerPort, 0))
      ]
    ]))
    error_message = "A container maps one of the ports 19000, 8500, 8501, 8502, 8600 or 8301, on which the sidecars listen: use another port."
  }
}

variable "requires_compatibilities" {
  description = "Launch types of the task."
  type        = list(string)
  default     = ["EC2", "FARGATE"]
}

variable "cpu" {
  description = "CPU units of the task. The sidecars take 120 of them (80 without an agent), and 8 more with a shutdown delay."
  type        = number
  default     = 256
}

variable "memory" {
  description = "Memory of the task in MiB. The sidecars reserve 272 of them (128 without an agent), and 16 more with a shutdown delay."
  type        = number
  default     = 512
}

variable "cpu_architecture" {
  description = "X86_64 or ARM64. All images of the task must be for this architecture."
  type        = string
  default     = "X86_64"
}

variable "volumes" {
  description = "The app's volumes: objects with `name` and optionally `host_path`, `docker_volume_configuration` or `efs_volume_configuration`, as in `aws_ecs_task_definition`."
  type        = any
  default     = []
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}

variable "log_configuration" {
  description = "Log configuration of the sidecars, as in a container definition of ECS."
  type        = any
  default     = {}
}

variable "application_shutdown_delay_seconds" {
  description = "How many seconds each app container runs on after TERM, while the rest of the mesh learns of the stop. Each such container needs an `entryPoint`; [\"\"] says that its image has none. For a gateway, this is the delay of its Envoy."
  type        = number
  default     = 0
}

variable "listener_ports" {
  description = "For an ingress gateway: the ports of its listeners. They become port mappings, because a load balancer sends requests only to mapped ports."
  type        = list(number)
  default     = []
}

variable "application_shutdown_delay_containers" {
  description = "Names of the containers with that delay. Empty: all containers except log routers and containers whose end others wait for."
  type        = list(string)
  default     = []
}

# The images.

variable "registry" {
  description = "Where the images of ecs-mesh are: `<registry>/<image>:<version>`."
  type        = string
  default     = ""
}

variable "images" {
  description = "Images one by one, in place of those in `registry`: `meshInit`, `sidecarProxy`, `meshDataplane`, `healthSync`, `appEntrypoint`."
  type        = map(string)
  default     = {}
}

variable "consul_image" {
  description = "Image of the Consul agent."
  type        = string
  default     = "hashicorp/consul:1.21.4"
}

# The service.

variable "port" {
  description = "Port on which the app listens. 0: the app takes no requests."
  type        = number
  default     = 0
}

variable "outbound_only" {
  description = "Whether the app takes no requests. Then `port` has no effect."
  type        = bool
  default     = false
}

variable "consul_service_name" {
  description = "Name of the service in Consul."
  type        = string
  default     = ""
}

variable "consul_service_tags" {
  description = "Tags of the service in Consul."
  type        = list(string)
  default     = []
}

variable "consul_service_meta" {
  description = "Meta of the service in Consul."
  type        = map(string)
  default     = {}
}

variable "consul_namespace" {
  description = "Namespace of the service (Consul Enterprise)."
  type        = string
  default     = ""
}

variable "consul_partition" {
  description = "Admin partition of the service (Consul Enterprise)."
  type        = string
  default     = ""
}

variable "checks" {
  description = "Checks that the Consul agent runs, as `service.checks` in docs/config.md. Empty: health-sync reports the health of each container that has a `healthCheck`."
  type        = any
  default     = []
}

variable "upstreams" {
  description = "Services that the app calls, as `proxy.upstreams` in docs/config.md."
  type        = any
  default     = []

  validation {
    condition     = alltrue([for upstream in var.upstreams : can(upstream.destinationName) && can(upstream.localBindPort)])
    error_message = "Each upstream needs destinationName and localBindPort."
  }
}

variable "envoy_public_listener_port" {
  description = "Port on which Envoy takes requests from the mesh."
  type        = number
  default     = 20000
}

variable "consul_ecs_config" {
  description = "More fields of the document in docs/config.md. Fields given here win over the other inputs."
  type        = any
  default     = {}
}

# Consul's servers.

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

variable "envoy_readiness_port" {
  description = "Port on which Envoy says that it is ready, in a task without an agent."
  type        = number
  default     = 22000
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
  description = "ARN of the secret with the gossip key. Empty: gossip is not encrypted."
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
  description = "The same as `consul_server_ca_cert_arn`, under its name in terraform-aws-consul-ecs 0.7 and later."
  type        = string
  default     = ""
}

# ACLs.

variable "acls" {
  description = "Whether Consul has ACLs. With `acl_secret_name_prefix` the tokens come from acl-controller; without it the task logs in by its IAM role."
  type        = bool
  default     = false
}

variable "acl_secret_name_prefix" {
  description = "`name_prefix` of the module acl-controller."
  type        = string
  default     = ""
}

variable "consul_client_token_secret_arn" {
  description = "Output `client_token_secret_arn` of the module acl-controller; required with `acl_secret_name_prefix`."
  type        = string
  default     = ""
}

variable "create_service_token_secret" {
  description = "Whether the module creates the secret `<prefix>-<service>`. Set it to false where the secret exists, for example because another family has the same service."
  type        = bool
  default     = true
}

variable "service_token_secret_arn" {
  description = "ARN of the secret `<prefix>-<service>`; required if `create_service_token_secret` is false."
  type        = string
  default     = ""
}

variable "consul_http_addr" {
  description = "URL of Consul's servers; required for a login of a task with an agent."
  type        = string
  default     = ""
}

variable "service_token_auth_method_name" {
  description = "Auth method for the login of mesh-init and health-sync."
  type        = string
  default     = "iam-ecs-service-token"
}

# The roles.

variable "iam_role_path" {
  description = "Path of the roles. For a login it must agree with the auth method."
  type        = string
  default     = "/consul-ecs/"
}

variable "create_task_role" {
  description = "Whether the module creates the task role."
  type        = bool
  default     = true
}

variable "task_role" {
  description = "The task role, if `create_task_role` is false. For a login it needs the tag `consul.hashicorp.com.service-name` and the permission iam:GetRole on itself."
  type        = object({ id = string, arn = string })
  default     = { id = null, arn = null }
}

variable "create_execution_role" {
  description = "Whether the module creates the execution role."
  type        = bool
  default     = true
}

variable "execution_role" {
  description = "The execution role, if `create_execution_role` is false. It must be able to read the secrets."
  type        = object({ id = string, arn = string })
  default     = { id = null, arn = null }
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
