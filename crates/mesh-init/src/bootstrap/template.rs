//! `envoy_bootstrap_json_tpl`: the part of Go's text/template that Consul's own bootstrap template is written in.
//!
//! Text, comments, trim markers, `{{ .Field }}`, `if`/`else if`/`else`/`end`, `range` over a list, `not`, `and`, `or`,
//! `eq`, `ne`, strings, integers, `true`, `false` and parentheses. As in Go nothing is escaped. All else is an error that
//! tells where it stands.

use std::iter::Peekable;
use std::vec::IntoIter;

/// Blocks and parentheses deeper than this are nobody's template.
const DEPTH: usize = 64;
const TAKEN: &str = "{{ .Field }}, if, else, end, range, not, and, or, eq, ne, strings, integers and comments";

/// What stands in a template and cannot be used, and where.
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

/// Fills the template with the fields.
pub(super) fn render(template: &str, fields: &Fields) -> Result<String, TemplateError> {
    let mut parser = Parser { pieces: pieces(template)?.into_iter().peekable(), depth: 0 };
    let (nodes, end) = parser.nodes()?;
    if let Some((at, word)) = end {
        return Err(at.wrong(format!("{{{{ {} }}}} ends nothing: expected an if or a range before it", word.name())));
    }
    let mut scope = Scope { fields, dot: None, variables: Vec::new(), out: String::new() };
    scope.run(&nodes)?;
    Ok(scope.out)
}

/// Where an action begins; lines and columns count from 1.
#[derive(Debug, Clone, Copy)]
struct At {
    line: usize,
    column: usize,
}

impl At {
    fn of(text: &str, offset: usize) -> Self {
        let before = &text[..offset];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
    }

    fn wrong(self, problem: impl Into<String>) -> TemplateError {
        TemplateError { line: self.line, column: self.column, problem: problem.into() }
    }

    fn unsupported(self, what: &str) -> TemplateError {
        self.wrong(format!("{what} is not supported: a template here has {TAKEN}"))
    }
}

enum Piece {
    Text(String),
    Action(At, Vec<Token>),
}

/// Cuts the template into text and actions. A dash beside a delimiter takes away the white space on its side.
fn pieces(template: &str) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = Vec::new();
    let (mut rest, mut trimmed) = (template, false);
    loop {
        let start = rest.find("{{");
        let mut text = &rest[..start.unwrap_or(rest.len())];
        if trimmed {
            text = text.trim_start();
        }
        let Some(start) = start else {
            pieces.push(Piece::Text(text.to_owned()));
            return Ok(pieces);
        };
        let at = At::of(template, template.len() - rest.len() + start);
        let mut action = &rest[start + 2..];
        if action.starts_with('-') && action[1..].starts_with(char::is_whitespace) {
            text = text.trim_end();
            action = &action[1..];
        }
        pieces.push(Piece::Text(text.to_owned()));
        let tokens;
        if let Some(comment) = action.trim_start().strip_prefix("/*") {
            let end = comment.find("*/").ok_or_else(|| at.wrong("a comment without */"))?;
            (tokens, rest) = (None, &comment[end + 2..]);
        } else {
            let (read, after) = tokens_of(action, at)?;
            (tokens, rest) = (Some(read), after);
        }
        let closed = rest.trim_start();
        trimmed = closed.len() < rest.len() && closed.starts_with("-}}");
        rest =
            closed.strip_prefix(if trimmed { "-}}" } else { "}}" }).ok_or_else(|| at.wrong("an action without }}"))?;
        pieces.extend(tokens.map(|tokens| Piece::Action(at, tokens)));
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// `.`, `.A` or `.A.B`, without the first dot.
    Field(String),
    /// `$`, `$name` or `$.Field`, without the dollar.
    Variable(String),
    Word(String),
    Text(String),
    Number(i64),
    Mark(&'static str),
}

impl Token {
    fn name(&self) -> String {
        match self {
            Self::Field(name) => format!(".{name}"),
            Self::Variable(name) => format!("${name}"),
            Self::Word(word) => word.clone(),
            Self::Text(_) => "a string".to_owned(),
            Self::Number(number) => number.to_string(),
            Self::Mark(mark) => (*mark).to_owned(),
        }
    }
}

/// The tokens of an action, and what comes after them: white space and its end, with a dash or not.
fn tokens_of(action: &str, at: At) -> Result<(Vec<Token>, &str), TemplateError> {
    let mut tokens = Vec::new();
    let mut rest = action;
    loop {
        let next = rest.trim_start();
        if next.starts_with("}}") || (next.len() < rest.len() && next.starts_with("-}}")) {
            return Ok((tokens, rest));
        }
        let Some(first) = next.chars().next() else { return Err(at.wrong("an action without }}")) };
        let after = &next[first.len_utf8()..];
        let token;
        (token, rest) = match first {
            '.' => name(after, true, Token::Field),
            '$' => name(after, true, Token::Variable),
            'a'..='z' | 'A'..='Z' | '_' => name(next, false, Token::Word),
            '"' => quoted(next, at)?,
            '`' => {
                let (text, after) = after.split_once('`').ok_or_else(|| at.wrong("a string without its second `"))?;
                (Token::Text(text.to_owned()), after)
            }
            '0'..='9' | '-' => {
                let end = after.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(after.len());
                let (number, after) = next.split_at(end + 1);
                let value = number.parse().map_err(|_| at.unsupported(&format!("{number:?}")))?;
                (Token::Number(value), after)
            }
            '(' => (Token::Mark("("), after),
            ')' => (Token::Mark(")"), after),
            ',' => (Token::Mark(","), after),
            ':' if after.starts_with('=') => (Token::Mark(":="), &after[1..]),
            other => return Err(at.unsupported(&format!("{other:?}"))),
        };
        tokens.push(token);
    }
}

fn name(text: &str, dotted: bool, token: impl Fn(String) -> Token) -> (Token, &str) {
    let goes_on = |c: char| c.is_alphanumeric() || c == '_' || (dotted && c == '.');
    let (name, after) = text.split_at(text.find(|c| !goes_on(c)).unwrap_or(text.len()));
    (token(name.to_owned()), after)
}

/// A string in double quotes, with the escapes that Go and JSON share.
fn quoted(text: &str, at: At) -> Result<(Token, &str), TemplateError> {
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<String>();
    match stream.next() {
        Some(Ok(value)) => Ok((Token::Text(value), &text[stream.byte_offset()..])),
        _ => Err(at.wrong("a string that does not end, or with an escape that is not JSON's")),
    }
}

enum Node {
    Text(String),
    Print(At, Expression),
    /// The branches in order; the last may stand without a condition.
    If(At, Vec<(Option<Expression>, Vec<Node>)>),
    Range {
        at: At,
        variables: Vec<String>,
        list: Expression,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

enum Expression {
    Literal(Datum),
    Field(String),
    Dot,
    Variable(String),
    Call(Function, Vec<Expression>),
}

#[derive(Clone, Copy)]
enum Function {
    Not,
    And,
    Or,
    Eq,
    Ne,
}

/// What ends a list of nodes.
enum End {
    End,
    Else(Option<Expression>),
}

impl End {
    fn name(&self) -> &'static str {
        match self {
            Self::End => "end",
            Self::Else(_) => "else",
        }
    }
}

struct Parser {
    pieces: Peekable<IntoIter<Piece>>,
    depth: usize,
}

type Tokens = Peekable<IntoIter<Token>>;
type Nodes = (Vec<Node>, Option<(At, End)>);

impl Parser {
    fn nodes(&mut self) -> Result<Nodes, TemplateError> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let (at, tokens) = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action(at, tokens) => (at, tokens),
            };
            let mut tokens = tokens.into_iter().peekable();
            let word = match tokens.peek() {
                Some(Token::Word(word)) => word.clone(),
                _ => String::new(),
            };
            let node = match word.as_str() {
                "end" | "else" => {
                    tokens.next();
                    let end = if word == "end" { End::End } else { End::Else(otherwise(at, &mut tokens)?) };
                    no_more(at, &mut tokens)?;
                    return Ok((nodes, Some((at, end))));
                }
                "if" => {
                    tokens.next();
                    let condition = whole(at, &mut tokens)?;
                    self.branches(at, condition)?
                }
                "range" => {
                    tokens.next();
                    self.range(at, tokens)?
                }
                _ => Node::Print(at, whole(at, &mut tokens)?),
            };
            nodes.push(node);
        }
        Ok((nodes, None))
    }

    /// The nodes of a block, up to its `else` or `end`.
    fn block(&mut self, at: At) -> Result<(Vec<Node>, End), TemplateError> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(at.wrong(format!("more than {DEPTH} blocks in one another")));
        }
        let (nodes, end) = self.nodes()?;
        self.depth -= 1;
        let (_, end) = end.ok_or_else(|| at.wrong("a block without {{ end }}"))?;
        Ok((nodes, end))
    }

    fn branches(&mut self, at: At, condition: Expression) -> Result<Node, TemplateError> {
        let mut branches = Vec::new();
        let mut condition = Some(condition);
        loop {
            let last = condition.is_none();
            let (nodes, end) = self.block(at)?;
            branches.push((condition, nodes));
            match end {
                End::End => return Ok(Node::If(at, branches)),
                End::Else(_) if last => return Err(at.wrong("an else after the last else")),
                End::Else(next) => condition = next,
            }
        }
    }

    fn range(&mut self, at: At, mut tokens: Tokens) -> Result<Node, TemplateError> {
        let mut variables = Vec::new();
        if tokens.clone().any(|token| token == Token::Mark(":=")) {
            loop {
                let name = match tokens.next() {
                    Some(Token::Variable(name)) if !name.is_empty() && !name.contains('.') => name,
                    _ => return Err(at.wrong("expected {{ range $index, $element := .List }}")),
                };
                variables.push(name);
                match tokens.next() {
                    Some(Token::Mark(":=")) => break,
                    Some(Token::Mark(",")) if variables.len() < 2 => {}
                    _ => return Err(at.wrong("expected {{ range $index, $element := .List }}")),
                }
            }
        }
        let list = whole(at, &mut tokens)?;
        let (body, end) = self.block(at)?;
        let otherwise = match end {
            End::End => Vec::new(),
            End::Else(None) => match self.block(at)? {
                (nodes, End::End) => nodes,
                _ => return Err(at.wrong("an else after the last else")),
            },
            End::Else(Some(_)) => return Err(at.unsupported("else if after a range")),
        };
        Ok(Node::Range { at, variables, list, body, otherwise })
    }
}

/// What follows `else`: nothing, or `if` and a condition.
fn otherwise(at: At, tokens: &mut Tokens) -> Result<Option<Expression>, TemplateError> {
    match tokens.next() {
        None => Ok(None),
        Some(Token::Word(word)) if word == "if" => whole(at, tokens).map(Some),
        Some(other) => Err(at.unsupported(&format!("else {}", other.name()))),
    }
}

/// The expression that all the tokens make.
fn whole(at: At, tokens: &mut Tokens) -> Result<Expression, TemplateError> {
    let expression = expression(at, tokens, 0)?;
    no_more(at, tokens)?;
    Ok(expression)
}

fn no_more(at: At, tokens: &mut Tokens) -> Result<(), TemplateError> {
    match tokens.next() {
        None => Ok(()),
        Some(other) => Err(at.wrong(format!("did not expect {} there", other.name()))),
    }
}

/// A function with its arguments, or one operand.
fn expression(at: At, tokens: &mut Tokens, depth: usize) -> Result<Expression, TemplateError> {
    let function = match tokens.peek() {
        Some(Token::Word(word)) => match word.as_str() {
            "not" => Function::Not,
            "and" => Function::And,
            "or" => Function::Or,
            "eq" => Function::Eq,
            "ne" => Function::Ne,
            _ => return operand(at, tokens, depth),
        },
        _ => return operand(at, tokens, depth),
    };
    tokens.next();
    let mut arguments = Vec::new();
    while tokens.peek().is_some_and(|token| *token != Token::Mark(")")) {
        arguments.push(operand(at, tokens, depth)?);
    }
    let fits = match function {
        Function::Not => arguments.len() == 1,
        Function::And | Function::Or => !arguments.is_empty(),
        Function::Eq => arguments.len() > 1,
        Function::Ne => arguments.len() == 2,
    };
    if fits {
        Ok(Expression::Call(function, arguments))
    } else {
        Err(at.wrong("expected not with one value, and or or with at least one, eq with at least two, ne with two"))
    }
}

fn operand(at: At, tokens: &mut Tokens, depth: usize) -> Result<Expression, TemplateError> {
    Ok(match tokens.next() {
        Some(Token::Field(name)) if name.is_empty() => Expression::Dot,
        Some(Token::Field(name)) => Expression::Field(name),
        Some(Token::Variable(name)) => Expression::Variable(name),
        Some(Token::Text(text)) => Expression::Literal(Datum::Text(text)),
        Some(Token::Number(number)) => Expression::Literal(Datum::Number(number)),
        Some(Token::Word(word)) if word == "true" || word == "false" => {
            Expression::Literal(Datum::Flag(word == "true"))
        }
        Some(Token::Mark("(")) if depth < DEPTH => {
            let inner = expression(at, tokens, depth + 1)?;
            match tokens.next() {
                Some(Token::Mark(")")) => inner,
                _ => return Err(at.wrong("expected a )")),
            }
        }
        Some(other) => return Err(at.unsupported(&other.name())),
        None => return Err(at.wrong("expected a value")),
    })
}

/// The state while a template is filled.
struct Scope<'a> {
    fields: &'a Fields,
    /// Inside of a range the element.
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
                    _ => return Err(at.wrong("a range needs a list: .AdminAccessLogConfig is one")),
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
            Expression::Dot => self.dot.clone().ok_or_else(|| at.wrong("expected a field, such as .ProxyID")),
            Expression::Variable(name) => match name.strip_prefix('.') {
                Some(field) => self.field(at, field),
                None => {
                    let variable = self.variables.iter().rev().find(|(known, _)| known == name);
                    let variable = variable.map(|(_, datum)| datum.clone());
                    variable.ok_or_else(|| at.wrong(format!("there is no variable ${name}")))
                }
            },
            Expression::Call(function, arguments) => {
                let mut values = Vec::new();
                for argument in arguments {
                    values.push(self.value(at, argument)?);
                    // As in Go, what decides ends it.
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

    /// A field; those of `GRPC` also by their own name, as in Consul.
    fn field(&self, at: At, name: &str) -> Result<Datum, TemplateError> {
        let short = name.strip_prefix("GRPC.").filter(|short| short.starts_with("Agent") && *short != "AgentCAPEM");
        let field = self.fields.iter().find(|(known, _)| *known == short.unwrap_or(name));
        let field = field.map(|(_, datum)| datum.clone());
        field.ok_or_else(|| at.wrong(format!("there is no field .{name}: expected one of Consul's BootstrapTplArgs")))
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
        render(template, &fields()).unwrap()
    }

    fn refused(template: &str) -> String {
        render(template, &fields()).unwrap_err().to_string()
    }

    #[test]
    fn fields_conditions_lists_and_comments_are_filled_as_go_does() {
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
    fn what_is_not_taken_is_one_line_with_its_position() {
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
            ("{{ eq .ProxyID }}", "eq with at least two"),
            ("{{ .AdminAccessLogConfig }}", "expected a range over it"),
            ("{{ range .ProxyID }}{{ end }}", "a range needs a list"),
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
        assert!(refused(&"{{ if true }}".repeat(1000)).contains("more than 64 blocks"));
        assert!(refused(&format!("{{{{ {} }}}}", "(".repeat(1000))).contains("( is not supported"));
    }
}
