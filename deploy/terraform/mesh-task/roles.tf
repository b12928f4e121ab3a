data "aws_partition" "current" {}

locals {
  arn = "arn:${data.aws_partition.current.partition}"

  task_role_arn      = var.create_task_role ? aws_iam_role.task[0].arn : var.task_role.arn
  task_role_id       = var.create_task_role ? aws_iam_role.task[0].id : var.task_role.id
  execution_role_arn = var.create_execution_role ? aws_iam_role.execution[0].arn : var.execution_role.arn
  execution_role_id  = var.create_execution_role ? aws_iam_role.execution[0].id : var.execution_role.id

  assumed_by_tasks = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal = { Service = "ecs-tasks.amazonaws.com" } }]
  })

  # What the containers take from Secrets Manager and from the Parameter Store, and the log groups that they write to.
  logs = [
    for log in concat([var.log_configuration], [for container in local.apps : try(container.logConfiguration, {})]) : log
    if try(log.logDriver, "") != ""
  ]
  value_froms = distinct(concat(
    flatten([for container in local.container_definitions : [for secret in try(container.secrets, []) : secret.valueFrom]]),
    flatten([for log in local.logs : [for secret in try(log.secretOptions, []) : secret.valueFrom]]),
  ))
  secret_arns    = distinct([for from in local.value_froms : join(":", slice(split(":", from), 0, 7)) if can(regex(":secretsmanager:", from))])
  parameter_arns = [for from in local.value_froms : can(regex("^arn:", from)) ? from : "${local.arn}:ssm:*:*:parameter/${trimprefix(from, "/")}" if !can(regex(":secretsmanager:", from))]
  log_group_arns = distinct([
    for log in local.logs :
    "${local.arn}:logs:${try(log.options["awslogs-region"], "*")}:*:log-group:${log.options["awslogs-group"]}:*" if log.logDriver == "awslogs"
  ])
  created_log_group_arns = distinct([
    for log in local.logs :
    "${local.arn}:logs:${try(log.options["awslogs-region"], "*")}:*:log-group:${log.options["awslogs-group"]}:*"
    if log.logDriver == "awslogs" && try(log.options["awslogs-create-group"], "") == "true"
  ])

  looks_up_servers = length(regexall("provider=aws", join(" ", var.retry_join))) > 0
}

resource "aws_iam_role" "task" {
  count = var.create_task_role ? 1 : 0

  name               = "${var.family}-task"
  path               = var.iam_role_path
  assume_role_policy = local.assumed_by_tasks

  # Consul's auth method reads these tags at a login.
  tags = merge(var.tags, {
    for name, value in {
      "consul.hashicorp.com.service-name" = local.service_name
      "consul.hashicorp.com.namespace"    = local.namespace
    } : name => value if local.uses_login && value != ""
  })
}

resource "aws_iam_role_policy" "login" {
  count = var.create_task_role && local.uses_login ? 1 : 0

  name = "consul-login"
  role = aws_iam_role.task[0].id
  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = ["iam:GetRole"], Resource = [aws_iam_role.task[0].arn] }]
  })
}

resource "aws_iam_role_policy" "servers" {
  count = var.create_task_role && local.looks_up_servers ? 1 : 0

  name = "consul-servers"
  role = aws_iam_role.task[0].id
  policy = jsonencode({
    Version = "2012-10-17"
    # AWS takes no other resource for this action.
    Statement = [{ Effect = "Allow", Action = ["ec2:DescribeInstances"], Resource = ["*"] }]
  })
}

resource "aws_iam_role_policy_attachment" "task" {
  count = var.create_task_role ? length(var.additional_task_role_policies) : 0

  role       = aws_iam_role.task[0].id
  policy_arn = var.additional_task_role_policies[count.index]
}

resource "aws_iam_role" "execution" {
  count = var.create_execution_role ? 1 : 0

  name               = "${var.family}-execution"
  path               = var.iam_role_path
  assume_role_policy = local.assumed_by_tasks
  tags               = var.tags
}

resource "aws_iam_role_policy" "execution" {
  count = var.create_execution_role ? 1 : 0

  name = "mesh-task"
  role = aws_iam_role.execution[0].id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      for statement in [
        { Effect = "Allow", Action = ["secretsmanager:GetSecretValue"], Resource = local.secret_arns },
        { Effect = "Allow", Action = ["ssm:GetParameters"], Resource = local.parameter_arns },
        { Effect = "Allow", Action = ["logs:CreateLogGroup"], Resource = local.created_log_group_arns },
        { Effect = "Allow", Action = ["logs:CreateLogStream", "logs:PutLogEvents"], Resource = local.log_group_arns },
        # Images in ECR. AWS takes no other resource for the token.
        { Effect = "Allow", Action = ["ecr:GetAuthorizationToken"], Resource = ["*"] },
        { Effect = "Allow", Action = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"], Resource = ["${local.arn}:ecr:*:*:repository/*"] },
      ] : statement if length(statement.Resource) > 0
    ]
  })
}

resource "aws_iam_role_policy_attachment" "execution" {
  count = var.create_execution_role ? length(var.additional_execution_role_policies) : 0

  role       = aws_iam_role.execution[0].id
  policy_arn = var.additional_execution_role_policies[count.index]
}
