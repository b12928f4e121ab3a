locals {
  # arn:aws:ecs:REGION:ACCOUNT:cluster/NAME
  cluster   = split(":", var.ecs_cluster_arn)
  partition = local.cluster[1]
  region    = local.cluster[3]
  account   = local.cluster[4]

  assumed_by_tasks = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ecs-tasks.amazonaws.com" }
      Condition = { StringEquals = { "aws:SourceAccount" = local.account } }
    }]
  })

  log_group_arns = [
    for log in [var.log_configuration] :
    "arn:${local.partition}:logs:${try(log.options["awslogs-region"], local.region)}:${local.account}:log-group:${log.options["awslogs-group"]}:*"
    if try(log.logDriver, "") == "awslogs"
  ]
}

# The server calls no API of AWS.
resource "aws_iam_role" "task" {
  name               = "${var.name}-task"
  path               = var.iam_role_path
  assume_role_policy = local.assumed_by_tasks
  tags               = var.tags
}

resource "aws_iam_role" "execution" {
  name               = "${var.name}-execution"
  path               = var.iam_role_path
  assume_role_policy = local.assumed_by_tasks
  tags               = var.tags
}

resource "aws_iam_role_policy" "execution" {
  name = "dev-server"
  role = aws_iam_role.execution.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      for statement in [
        { Effect = "Allow", Action = ["secretsmanager:GetSecretValue"], Resource = [for secret in local.secrets : join(":", slice(split(":", secret.valueFrom), 0, 7))] },
        { Effect = "Allow", Action = ["logs:CreateLogStream", "logs:PutLogEvents"], Resource = local.log_group_arns },
        # Images in ECR. AWS takes no other resource for the token.
        { Effect = "Allow", Action = ["ecr:GetAuthorizationToken"], Resource = ["*"] },
        { Effect = "Allow", Action = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"], Resource = ["arn:${local.partition}:ecr:*:*:repository/*"] },
      ] : statement if length(statement.Resource) > 0
    ]
  })
}
