//! `google.protobuf.Struct` as a tree. Consul 1.8 configures Envoy's extensions with it.

use std::collections::BTreeMap;

use crate::wire::{self, Malformed, Value as Wire};

/// The deepest nesting that protobuf's own readers accept.
const DEPTH: usize = 100;

/// The fields of a Struct. They are sorted because Go writes them in random order, and the version of a resource is a hash of its
/// bytes.
pub type Object = BTreeMap<String, Value>;

/// A `google.protobuf.Value`.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `null_value`, or an empty Value.
    Null,
    /// `number_value`, encoded.
    Number([u8; 8]),
    /// `string_value`.
    Text(String),
    /// `bool_value`.
    Bool(bool),
    /// `struct_value`.
    Object(Object),
    /// `list_value`.
    List(Vec<Value>),
}

impl Value {
    /// A string value.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// The object, if the value is one.
    pub fn object_mut(&mut self) -> Option<&mut Object> {
        match self {
            Self::Object(object) => Some(object),
            _ => None,
        }
    }
}

/// The entry of a field, by its name in snake case or by its JSON name. Consul writes snake case. Escape-hatch JSON
/// may have either.
pub fn entry<'a>(object: &'a mut Object, snake: &str) -> Option<&'a mut Value> {
    if object.contains_key(snake) {
        return object.get_mut(snake);
    }
    object.get_mut(&json_name(snake))
}

/// Removes and returns the entry that [`entry`] finds.
pub fn take(object: &mut Object, snake: &str) -> Option<Value> {
    object.remove(snake).or_else(|| object.remove(&json_name(snake)))
}

fn json_name(snake: &str) -> String {
    let mut name = String::with_capacity(snake.len());
    let mut upper = false;
    for character in snake.chars() {
        match character {
            '_' => upper = true,
            _ if upper => {
                name.push(character.to_ascii_uppercase());
                upper = false;
            }
            _ => name.push(character),
        }
    }
    name
}

/// Reads a Struct. Too deep nesting is an error.
pub fn decode(message: &[u8]) -> Result<Object, Malformed> {
    object(message, DEPTH)
}

fn object(message: &[u8], depth: usize) -> Result<Object, Malformed> {
    let depth = depth.checked_sub(1).ok_or(Malformed)?;
    let mut object = Object::new();
    for field in wire::fields(message) {
        let field = field?;
        if field.number != 1 {
            continue;
        }
        let (mut key, mut value) = (String::new(), Value::Null);
        for part in wire::fields(field.bytes()?) {
            let part = part?;
            match part.number {
                1 => key = part.text()?.to_owned(),
                2 => value = self::value(part.bytes()?, depth)?,
                _ => {}
            }
        }
        object.insert(key, value);
    }
    Ok(object)
}

fn value(message: &[u8], depth: usize) -> Result<Value, Malformed> {
    let depth = depth.checked_sub(1).ok_or(Malformed)?;
    let mut value = Value::Null;
    for field in wire::fields(message) {
        let field = field?;
        value = match (field.number, field.value) {
            (2, Wire::Fixed64(number)) => Value::Number(number),
            (3, Wire::Bytes(_)) => Value::Text(field.text()?.to_owned()),
            (4, Wire::Varint(bool)) => Value::Bool(bool != 0),
            (5, Wire::Bytes(bytes)) => Value::Object(object(bytes, depth)?),
            (6, Wire::Bytes(bytes)) => {
                let mut items = Vec::new();
                for item in wire::fields(bytes) {
                    items.push(self::value(item?.bytes()?, depth)?);
                }
                Value::List(items)
            }
            _ => Value::Null,
        };
    }
    Ok(value)
}

/// Writes a Struct with its fields in sorted order.
#[must_use]
pub fn encode(object: &Object) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in object {
        let mut entry = Vec::new();
        wire::put_bytes(&mut entry, 1, key.as_bytes());
        wire::put_bytes(&mut entry, 2, &encode_value(value));
        wire::put_bytes(&mut out, 1, &entry);
    }
    out
}

fn encode_value(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    match value {
        Value::Null => wire::put_varint(&mut out, 1, 0),
        Value::Number(number) => wire::put_fixed64(&mut out, 2, *number),
        Value::Text(text) => wire::put_bytes(&mut out, 3, text.as_bytes()),
        Value::Bool(bool) => wire::put_varint(&mut out, 4, u64::from(*bool)),
        Value::Object(object) => wire::put_bytes(&mut out, 5, &encode(object)),
        Value::List(items) => {
            let mut list = Vec::new();
            for item in items {
                wire::put_bytes(&mut list, 1, &encode_value(item));
            }
            wire::put_bytes(&mut out, 6, &list);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decoded_struct_is_encoded_in_sorted_order() {
        let object = Object::from([
            ("b".into(), Value::Bool(true)),
            ("a".into(), Value::List(vec![Value::text("x"), Value::Null, Value::Number(1.5f64.to_le_bytes())])),
            ("c".into(), Value::Object(Object::from([("d".into(), Value::text("e"))]))),
        ]);
        let bytes = encode(&object);
        assert_eq!(decode(&bytes), Ok(object));

        let entries: Vec<_> = wire::fields(&bytes).map(|field| field.unwrap().raw.to_vec()).collect();
        let reversed: Vec<u8> = entries.into_iter().rev().flatten().collect();
        assert_ne!(reversed, bytes);
        assert_eq!(encode(&decode(&reversed).unwrap()), bytes);
    }

    #[test]
    fn too_deep_nesting_is_an_error() {
        let mut message = Vec::new();
        for _ in 0..200 {
            let mut outer = Vec::new();
            wire::put_bytes(&mut outer, 5, &message);
            let mut entry = Vec::new();
            wire::put_bytes(&mut entry, 2, &outer);
            message = Vec::new();
            wire::put_bytes(&mut message, 1, &entry);
        }
        assert_eq!(decode(&message), Err(Malformed));
    }

    #[test]
    fn fields_are_found_by_snake_case_and_by_json_name() {
        let mut object = Object::from([("httpFilters".into(), Value::Null)]);
        assert_eq!(take(&mut object, "http_filters"), Some(Value::Null));
        assert!(object.is_empty());
    }
}
