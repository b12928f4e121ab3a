//! `envoy_bootstrap_json_tpl`: the part of Go's text/template in which Consul's own bootstrap template is written.
//!
//! This parser is written by hand, because every Rust library for Go's templates adds functions that Consul does not have. The subset is
//! small: text, comments, trim markers, `{{ .Field }}`, `if`/`else if`/`else`/`end`, `range` over a list, `not`, `and`, `or`, `eq`, `ne`,
//! strings, integers, `true`, `false` and parentheses. Like Go's, it escapes nothing. Everything else is an error with its line and column.

mod parser;
mod tokens;

use parser::{Expression, Function, Node};
use tokens::At;

/// The fields of Consul's `BootstrapTplArgs`.
pub(super) const FIELDS: [&str; 31] = [
    "AgentAddress",
    "AgentPort",
    "AgentSocket",
    "AgentTLS",
    "AgentCAPEM",
    "ProxyCluster",
    "ProxyID",
    "ProxySourceService",
    "NodeName",
    "AdminAccessLogConfig",
    "AdminAccessLogPath",
    "AdminBindAddress",
    "AdminBindPort",
    "LocalAgentClusterName",
    "Token",
    "Namespace",
    "Partition",
    "Datacenter",
    "PrometheusBackendPort",
    "PrometheusScrapePath",
    "PrometheusCAFile",
    "PrometheusCAPath",
    "PrometheusCertFile",
    "PrometheusKeyFile",
    "StaticClustersJSON",
    "StaticListenersJSON",
    "StaticSecretsJSON",
    "StatsSinksJSON",
    "StatsConfigJSON",
    "StatsFlushInterval",
    "TracingConfigJSON",
];

/// A part of a template that cannot be used, with its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {problem}")]
pub struct TemplateError {
    line: usize,
    column: usize,
    problem: String,
}

/// What a field or an expression holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Datum {
    Text(String),
    Flag(bool),
    Number(i64),
    List(Vec<String>),
}

impl Datum {
    fn is_true(&self) -> bool {
        match self {
            Self::Text(text) => !text.is_empty(),
            Self::Flag(flag) => *flag,
            Self::Number(number) => *number != 0,
            Self::List(list) => !list.is_empty(),
        }
    }
}

impl From<&str> for Datum {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// The fields by name.
pub(super) type Fields = Vec<(&'static str, Datum)>;

/// A parsed template. All its fields are known.
pub struct Template(Vec<Node>);

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// With the line and column of what is not supported.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        parser::parse(text).map(Self)
    }

    /// The template with the fields filled in.
    pub(super) fn render(&self, fields: &Fields) -> Result<String, TemplateError> {
        let mut scope = Scope { fields, dot: None, variables: Vec::new(), out: String::new() };
        scope.run(&self.0)?;
        Ok(scope.out)
    }
}

/// The state while a template is filled.
struct Scope<'a> {
    fields: &'a Fields,
    /// The current element inside a `range`; none outside.
    dot: Option<Datum>,
    variables: Vec<(String, Datum)>,
    out: String,
}

impl Scope<'_> {
    fn run(&mut self, nodes: &[Node]) -> Result<(), TemplateError> {
        for node in nodes {
            match node {
                Node::Text(text) => self.out.push_str(text),
                Node::Print(at, expression) => match self.value(*at, expression)? {
                    Datum::Text(text) => self.out.push_str(&text),
                    Datum::Flag(flag) => self.out.push_str(if flag { "true" } else { "false" }),
                    Datum::Number(number) => self.out.push_str(&number.to_string()),
                    Datum::List(_) => return Err(at.wrong("a list cannot be written: expected a range over it")),
                },
                Node::If(at, branches) => {
                    for (condition, nodes) in branches {
                        let holds = condition.as_ref().map_or(Ok(true), |c| Ok(self.value(*at, c)?.is_true()))?;
                        if holds {
                            self.run(nodes)?;
                            break;
                        }
                    }
                }
                Node::Range { at, variables, list, body, otherwise } => match self.value(*at, list)? {
                    Datum::List(list) if list.is_empty() => self.run(otherwise)?,
                    Datum::List(list) => self.each(list, variables, body)?,
                    _ => return Err(at.wrong("expected a list after range, such as .AdminAccessLogConfig")),
                },
            }
        }
        Ok(())
    }

    fn each(&mut self, list: Vec<String>, variables: &[String], body: &[Node]) -> Result<(), TemplateError> {
        let (outer, known) = (self.dot.take(), self.variables.len());
        for (index, element) in list.into_iter().enumerate() {
            let element = Datum::Text(element);
            let index = Datum::Number(i64::try_from(index).unwrap_or(i64::MAX));
            match variables {
                [one] => self.variables.push((one.clone(), element.clone())),
                [first, second] => {
                    self.variables.push((first.clone(), index));
                    self.variables.push((second.clone(), element.clone()));
                }
                _ => {}
            }
            self.dot = Some(element);
            self.run(body)?;
            self.variables.truncate(known);
        }
        self.dot = outer;
        Ok(())
    }

    fn value(&self, at: At, expression: &Expression) -> Result<Datum, TemplateError> {
        match expression {
            Expression::Literal(datum) => Ok(datum.clone()),
            Expression::Field(name) if self.dot.is_none() => self.field(at, name),
            Expression::Field(name) => Err(at.wrong(format!("inside of a range expected $.{name}, not .{name}"))),
            Expression::RootField(name) => self.field(at, name),
            Expression::Dot => self.dot.clone().ok_or_else(|| at.wrong("expected a field, such as .ProxyID")),
            Expression::Variable(name) => {
                let variable = self.variables.iter().rev().find(|(known, _)| known == name);
                let variable = variable.map(|(_, datum)| datum.clone());
                variable.ok_or_else(|| at.wrong(format!("there is no variable ${name}")))
            }
            Expression::Call(function, arguments) => {
                let mut values = Vec::new();
                for argument in arguments {
                    values.push(self.value(at, argument)?);
                    // As in Go, `and` and `or` stop at the value that decides.
                    let decided = values.last().is_some_and(|value| match function {
                        Function::And => !value.is_true(),
                        Function::Or => value.is_true(),
                        Function::Not | Function::Eq | Function::Ne => false,
                    });
                    if decided {
                        break;
                    }
                }
                match function {
                    Function::Not => Ok(Datum::Flag(!values[0].is_true())),
                    Function::And | Function::Or => Ok(values.remove(values.len() - 1)),
                    Function::Eq | Function::Ne => {
                        let kind = std::mem::discriminant(&values[0]);
                        if values.iter().any(|value| std::mem::discriminant(value) != kind) {
                            return Err(at.wrong("expected values of one kind to compare"));
                        }
                        let equal = values[1..].contains(&values[0]);
                        Ok(Datum::Flag(equal == matches!(function, Function::Eq)))
                    }
                }
            }
        }
    }

    fn field(&self, at: At, name: &str) -> Result<Datum, TemplateError> {
        let field = self.fields.iter().find(|(known, _)| *known == name).map(|(_, datum)| datum.clone());
        field.ok_or_else(|| at.wrong(format!("the field .{name} has no value here")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> Fields {
        vec![
            ("ProxyID", "web-1".into()),
            ("Namespace", "".into()),
            ("AgentPort", "8502".into()),
            ("AgentCAPEM", "".into()),
            ("AgentTLS", Datum::Flag(true)),
            ("AdminAccessLogConfig", Datum::List(vec!["{1}".to_owned(), "{2}".to_owned()])),
        ]
    }

    fn rendered(template: &str) -> String {
        Template::parse(template).unwrap().render(&fields()).unwrap()
    }

    fn refused(template: &str) -> String {
        Template::parse(template).and_then(|template| template.render(&fields())).unwrap_err().to_string()
    }

    #[test]
    fn a_template_is_filled_as_in_go() {
        let cases = [
            ("plain { } text", "plain { } text"),
            ("id {{ .ProxyID }}{{.GRPC.AgentPort}}", "id web-18502"),
            ("a \n {{- .ProxyID -}} \n b", "aweb-1b"),
            ("a{{/* {{ gone */}}b {{- /* gone */ -}} c", "abc"),
            ("{{ if .AgentTLS }}tls{{ end }}", "tls"),
            ("{{if .Namespace}}{{.Namespace}}{{else}}default{{end}}", "default"),
            ("{{if ne .Namespace \"\"}}x{{else if eq .ProxyID `a` \"web-1\"}}y{{else}}z{{end}}", "y"),
            ("{{ if (not .AdminAccessLogConfig) }}none{{ else }}some{{ end }}", "some"),
            ("{{ if and .AgentTLS (not .Namespace) }}1{{end}}{{ or .Namespace .ProxyID }}", "1web-1"),
            ("{{ range $i, $e := .AdminAccessLogConfig }}{{if $i}},{{end}}{{$e}}{{end}}", "{1},{2}"),
            ("{{ range .AdminAccessLogConfig }}{{ . }}{{ $.ProxyID }};{{ end }}", "{1}web-1;{2}web-1;"),
            ("{{ range $e := .AdminAccessLogConfig }}{{ $e }}{{ else }}none{{ end }}", "{1}{2}"),
            (r#"{{ "a\"}}\n" }}{{ 7 }}{{ true }}{{ -1 }}"#, "a\"}}\n7true-1"),
        ];
        for (template, expected) in cases {
            assert_eq!(rendered(template), expected, "{template}");
        }
    }

    #[test]
    fn an_invalid_template_gives_one_line_with_the_position() {
        assert_eq!(
            refused("{\n  \"a\": {{ .Nothing }}"),
            "line 2, column 8: there is no field .Nothing: expected one of Consul's BootstrapTplArgs"
        );
        let cases = [
            ("{{ printf \"%s\" .ProxyID }}", "printf is not supported: a template here has {{ .Field }}, if, "),
            ("{{ .ProxyID | js }}", "'|' is not supported"),
            ("{{ with .ProxyID }}{{ end }}", "with is not supported"),
            ("{{ $x := 1 }}", "did not expect := there"),
            ("{{ .ProxyID", "an action without }}"),
            ("{{ .ProxyID - }}", "\"-\" is not supported"),
            ("{{ \"a", "a string that does not end"),
            ("{{ /* a", "a comment without */"),
            ("{{ if .AgentTLS }}", "a block without {{ end }}"),
            ("{{ if }}{{ end }}", "expected a value"),
            ("{{ end }}", "{{ end }} ends nothing"),
            ("{{ if true }}{{ else }}{{ else }}{{ end }}", "an else after the last else"),
            ("{{ eq .ProxyID 1 }}", "expected values of one kind"),
            ("{{ eq .ProxyID }}", "at least two for `eq`"),
            ("{{ .AdminAccessLogConfig }}", "expected a range over it"),
            ("{{ range .ProxyID }}{{ end }}", "expected a list after range"),
            ("{{ range .AdminAccessLogConfig }}{{ .ProxyID }}{{ end }}", "expected $.ProxyID"),
            ("{{ $x }}", "there is no variable $x"),
            ("{{ . }}", "expected a field"),
            ("{{ }}", "expected a value"),
            ("{{ .GRPC.AgentCAPEM }}", "there is no field .GRPC.AgentCAPEM"),
        ];
        for (template, problem) in cases {
            let line = refused(template);
            assert!(line.contains(problem) && line.lines().count() == 1, "{template}: {line}");
        }
        assert!(refused(&"{{ if true }}".repeat(1000)).contains("blocks are nested more than 64 deep"));
        assert!(refused(&format!("{{{{ {} }}}}", "(".repeat(1000))).contains("( is not supported"));
    }
}
