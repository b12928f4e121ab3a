//! Parses a template into a tree of nodes.

use std::iter::Peekable;
use std::vec::IntoIter;

use super::tokens::{At, Piece, Token, pieces};
use super::{Datum, FIELDS, TemplateError};

/// The deepest nesting of blocks and of parentheses. It bounds the recursion.
const DEPTH: usize = 64;

pub(super) enum Node {
    Text(String),
    Print(At, Expression),
    /// The branches in order. The last one may have no condition.
    If(At, Vec<(Option<Expression>, Vec<Node>)>),
    Range {
        at: At,
        variables: Vec<String>,
        list: Expression,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

pub(super) enum Expression {
    Literal(Datum),
    /// `.Field`
    Field(&'static str),
    /// `$.Field`
    RootField(&'static str),
    Dot,
    Variable(String),
    Call(Function, Vec<Expression>),
}

#[derive(Clone, Copy)]
pub(super) enum Function {
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

/// Parses a whole template.
pub(super) fn parse(template: &str) -> Result<Vec<Node>, TemplateError> {
    let mut parser = Parser { pieces: pieces(template)?.into_iter().peekable(), depth: 0 };
    let (nodes, end) = parser.nodes()?;
    match end {
        Some((at, word)) => {
            Err(at.wrong(format!("{{{{ {} }}}} ends nothing: expected an if or a range before it", word.name())))
        }
        None => Ok(nodes),
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
            return Err(at.wrong(format!("blocks are nested more than {DEPTH} deep")));
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

/// The expression that consists of all these tokens.
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
        Err(at.wrong(
            "wrong number of values: expected one for `not`, at least one for `and` and `or`, at least two for `eq`, two for `ne`",
        ))
    }
}

fn operand(at: At, tokens: &mut Tokens, depth: usize) -> Result<Expression, TemplateError> {
    Ok(match tokens.next() {
        Some(Token::Field(name)) if name.is_empty() => Expression::Dot,
        Some(Token::Field(name)) => Expression::Field(field(at, &name)?),
        Some(Token::Variable(name)) => match name.strip_prefix('.') {
            Some(name) => Expression::RootField(field(at, name)?),
            None => Expression::Variable(name),
        },
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

/// The field with this name. Consul also has some fields under `GRPC`.
fn field(at: At, name: &str) -> Result<&'static str, TemplateError> {
    let short = name.strip_prefix("GRPC.").filter(|short| short.starts_with("Agent") && *short != "AgentCAPEM");
    let known = FIELDS.into_iter().find(|known| *known == short.unwrap_or(name));
    known.ok_or_else(|| at.wrong(format!("there is no field .{name}: expected one of Consul's BootstrapTplArgs")))
}
