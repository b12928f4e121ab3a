terraform {
  required_version = ">= 1.0"

  required_providers {
    aws = {
      source = "hashicorp/aws"
      # Earlier versions drop fields of a container definition that they don't know, such as `restartPolicy`.
      version = ">= 5.77"
    }
  }
}
