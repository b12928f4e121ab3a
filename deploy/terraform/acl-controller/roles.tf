locals {
  assumed_by_tasks = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ecs-tasks.amazonaws.com" }
      Condition = { StringEquals = { "aws:SourceAccount" = local.account } }
    }]
  })

  secret_arns = distinct([for secret in local.container.secrets : join(":", slice(split(":", secret.valueFrom), 0, 7))])
  log_group_arns = [
    for log in [var.log_configuration] :
    "arn:${local.partition}:logs:${try(log.options["awslogs-region"], local.region)}:${local.account}:log-group:${log.options["awslogs-group"]}:*"
    if try(log.logDriver, "") == "awslogs"
  ]
}

resource "aws_iam_role" "task" {
  name               = "${local.name}-task"
  path               = var.iam_role_path
  assume_role_policy = local.assumed_by_tasks
  tags               = var.tags
}

# The policy in the README of the crate acl-controller.
resource "aws_iam_role_policy" "task" {
  name = "acl-controller"
  role = aws_iam_role.task.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat([
      # AWS takes no other resource for ListTasks and ListSecrets.
      { Effect = "Allow", Action = "ecs:ListTasks", Resource = "*", Condition = { ArnEquals = { "ecs:cluster" = var.ecs_cluster_arn } } },
      { Effect = "Allow", Action = "ecs:DescribeTasks", Resource = "arn:${local.partition}:ecs:${local.region}:${local.account}:task/${local.cluster_name}/*" },
      ], [
      for statement in [
        { Effect = "Allow", Action = "secretsmanager:ListSecrets", Resource = "*" },
        {
          Effect   = "Allow"
          Action   = ["secretsmanager:GetSecretValue", "secretsmanager:PutSecretValue"]
          Resource = "arn:${local.partition}:secretsmanager:${local.region}:${local.account}:secret:${var.name_prefix}-*"
        },
      ] : statement if var.token_secrets
    ])
  })
}

resource "aws_iam_role" "execution" {
  name               = "${local.name}-execution"
  path               = var.iam_role_path
  assume_role_policy = local.assumed_by_tasks
  tags               = var.tags
}

resource "aws_iam_role_policy" "execution" {
  name = "acl-controller"
  role = aws_iam_role.execution.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      for statement in [
        { Effect = "Allow", Action = ["secretsmanager:GetSecretValue"], Resource = local.secret_arns },
        { Effect = "Allow", Action = ["logs:CreateLogStream", "logs:PutLogEvents"], Resource = local.log_group_arns },
        # Images in ECR. AWS takes no other resource for the token.
        { Effect = "Allow", Action = ["ecr:GetAuthorizationToken"], Resource = ["*"] },
        { Effect = "Allow", Action = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"], Resource = ["arn:${local.partition}:ecr:*:*:repository/*"] },
      ] : statement if length(statement.Resource) > 0
    ]
  })
}

resource "aws_iam_role_policy_attachment" "execution" {
  count = length(var.additional_execution_role_policies)

  role       = aws_iam_role.execution.id
  policy_arn = var.additional_execution_role_policies[count.index]
}
