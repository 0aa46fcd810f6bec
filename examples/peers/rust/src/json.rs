//! JSON, as much of it as the protocol has.

use std::iter::Peekable;
use std::str::Chars;

pub enum Json {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    /// A field of an object; null where there is none.
    pub fn get(&self, name: &str) -> &Json {
        self.fields().iter().find(|(own, _)| own == name).map_or(&Json::Null, |(_, value)| value)
    }

    pub fn fields(&self) -> &[(String, Json)] {
        if let Json::Object(fields) = self { fields } else { &[] }
    }

    pub fn items(&self) -> &[Json] {
        if let Json::List(items) = self { items } else { &[] }
    }

    pub fn text(&self) -> &str {
        if let Json::Text(text) = self { text } else { "" }
    }

    pub fn number(&self) -> f64 {
        if let Json::Number(number) = self { *number } else { 0.0 }
    }

    /// Whether it is more than null, false or 0.
    pub fn given(&self) -> bool {
        match self {
            Json::Null => false,
            Json::Bool(value) => *value,
            Json::Number(value) => *value != 0.0,
            _ => true,
        }
    }
}

/// A text as JSON has it.
pub fn quoted(text: &str) -> String {
    let escaped: String = text
        .chars()
        .map(|c| match c {
            '"' | '\\' => format!("\\{c}"),
            c if (c as u32) < 32 => format!("\\u{:04x}", c as u32),
            c => c.to_string(),
        })
        .collect();
    format!("\"{escaped}\"")
}

pub fn parse(text: &str) -> Result<Json, String> {
    value(&mut text.chars().peekable())
}

fn skip(rest: &mut Peekable<Chars>) {
    while rest.next_if(|c| c.is_ascii_whitespace()).is_some() {}
}

fn expect(rest: &mut Peekable<Chars>, wanted: char) -> Result<(), String> {
    skip(rest);
    match rest.next() {
        Some(found) if found == wanted => Ok(()),
        found => Err(format!("{found:?} where {wanted:?} must be")),
    }
}

fn value(rest: &mut Peekable<Chars>) -> Result<Json, String> {
    skip(rest);
    match rest.peek() {
        Some('{') => Ok(Json::Object(several(rest, '{', '}', |rest| {
            skip(rest);
            let name = text(rest)?;
            expect(rest, ':')?;
            Ok((name, value(rest)?))
        })?)),
        Some('[') => Ok(Json::List(several(rest, '[', ']', value)?)),
        Some('"') => Ok(Json::Text(text(rest)?)),
        _ => {
            let mut word = String::new();
            while let Some(c) = rest.next_if(|c| c.is_ascii_alphanumeric() || "+-.".contains(*c)) {
                word.push(c);
            }
            match word.as_str() {
                "null" => Ok(Json::Null),
                "true" => Ok(Json::Bool(true)),
                "false" => Ok(Json::Bool(false)),
                _ => word.parse().map(Json::Number).map_err(|_| format!("{word:?} is no value")),
            }
        }
    }
}

fn several<T>(
    rest: &mut Peekable<Chars>,
    open: char,
    close: char,
    one: impl Fn(&mut Peekable<Chars>) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    expect(rest, open)?;
    let mut found = Vec::new();
    skip(rest);
    if rest.next_if_eq(&close).is_some() {
        return Ok(found);
    }
    loop {
        found.push(one(rest)?);
        skip(rest);
        match rest.next() {
            Some(',') => {}
            Some(c) if c == close => return Ok(found),
            other => return Err(format!("{other:?} in a list")),
        }
    }
}

fn text(rest: &mut Peekable<Chars>) -> Result<String, String> {
    expect(rest, '"')?;
    let mut found = String::new();
    loop {
        match rest.next().ok_or("a text without an end")? {
            '"' => return Ok(found),
            '\\' => match rest.next().ok_or("a text without an end")? {
                'n' => found.push('\n'),
                't' => found.push('\t'),
                'r' => found.push('\r'),
                'b' => found.push('\u{8}'),
                'f' => found.push('\u{c}'),
                'u' => {
                    let digits: String = rest.by_ref().take(4).collect();
                    let code = u32::from_str_radix(&digits, 16).map_err(|error| error.to_string())?;
                    found.push(char::from_u32(code).unwrap_or('\u{fffd}')); // half of a pair
                }
                other => found.push(other),
            },
            other => found.push(other),
        }
    }
}
