//! Cuts a template into text and actions, and actions into tokens.

use super::TemplateError;

const SUPPORTED: &str = "{{ .Field }}, if, else, end, range, not, and, or, eq, ne, strings, integers and comments";

/// Where an action begins; lines and columns count from 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct At {
    line: usize,
    column: usize,
}

impl At {
    fn of(text: &str, offset: usize) -> Self {
        let before = &text[..offset];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
    }

    pub(super) fn wrong(self, problem: impl Into<String>) -> TemplateError {
        TemplateError { line: self.line, column: self.column, problem: problem.into() }
    }

    pub(super) fn unsupported(self, what: &str) -> TemplateError {
        self.wrong(format!("{what} is not supported: a template here has {SUPPORTED}"))
    }
}

pub(super) enum Piece {
    Text(String),
    Action(At, Vec<Token>),
}

/// Cuts the template into text and actions. A dash next to a delimiter removes the white space on that side.
pub(super) fn pieces(template: &str) -> Result<Vec<Piece>, TemplateError> {
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
pub(super) enum Token {
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
    pub(super) fn name(&self) -> String {
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

/// The tokens of an action, and the rest of the text: white space and `}}` or `-}}`.
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
