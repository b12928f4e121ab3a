//! Protobuf's wire format, read and written field by field.
//!
//! This is written by hand because the bridge must copy fields that it does not know. The generated v3 types do not have v2's
//! fields and drop them, and generated types for v2 and v3 together would be about 90,000 lines. `fuzz` runs this code on random
//! input.

/// The bytes are not a protobuf message, or they are nested deeper than protobuf's own readers allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed protobuf message")]
pub struct Malformed;

/// The payload of one field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// An integer, a bool or an enum.
    Varint(u64),
    /// A double, `fixed64` or `sfixed64`.
    Fixed64([u8; 8]),
    /// A float, `fixed32` or `sfixed32`. The bridge only copies them, with [`Field::raw`].
    Fixed32,
    /// A string, bytes or an embedded message.
    Bytes(&'a [u8]),
}

/// One field of a message.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Field<'a> {
    /// The field's number in its message.
    pub number: u32,
    /// The payload.
    pub value: Value<'a>,
    /// Tag and payload, as in the message.
    pub raw: &'a [u8],
}

impl<'a> Field<'a> {
    /// The payload of a field that must be a string, bytes or an embedded message. A number is an error.
    pub fn bytes(&self) -> Result<&'a [u8], Malformed> {
        match self.value {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(Malformed),
        }
    }

    /// The payload of a string field, which must be UTF-8.
    pub fn text(&self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed)
    }
}

/// The fields of `message`, in their order.
#[must_use = "an iterator does nothing by itself"]
pub fn fields(message: &[u8]) -> Fields<'_> {
    Fields { rest: message }
}

/// The iterator of [`fields`]. It ends after the first error.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn read(&mut self) -> Result<Field<'a>, Malformed> {
        let start = self.rest;
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| Malformed)?;
        if number == 0 {
            return Err(Malformed);
        }
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(self.take(8)?.try_into().map_err(|_| Malformed)?),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
                Value::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Value::Fixed32
            }
            _ => return Err(Malformed),
        };
        let raw = &start[..start.len() - self.rest.len()];
        Ok(Field { number, value, raw })
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Malformed)?;
        self.rest = rest;
        Ok(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// Copies `message`. `change` gets each field and writes its replacement.
pub fn rewrite(
    message: &[u8],
    mut change: impl FnMut(Field<'_>, &mut Vec<u8>) -> Result<(), Malformed>,
) -> Result<Vec<u8>, Malformed> {
    let mut out = Vec::with_capacity(message.len() + 64);
    for field in fields(message) {
        change(field?, &mut out)?;
    }
    Ok(out)
}

/// Appends an integer, bool or enum field.
pub fn put_varint(out: &mut Vec<u8>, number: u32, value: u64) {
    varint(out, u64::from(number) << 3);
    varint(out, value);
}

/// Appends a double.
pub fn put_fixed64(out: &mut Vec<u8>, number: u32, value: [u8; 8]) {
    varint(out, u64::from(number) << 3 | 1);
    out.extend_from_slice(&value);
}

/// Appends a string, bytes or an embedded message.
pub fn put_bytes(out: &mut Vec<u8>, number: u32, value: &[u8]) {
    varint(out, u64::from(number) << 3 | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wire_type_is_copied_unchanged() {
        let mut message = Vec::new();
        put_varint(&mut message, 1, u64::MAX);
        put_fixed64(&mut message, 2, 1.5f64.to_le_bytes());
        put_bytes(&mut message, 1000, &[7; 300]);
        message.extend_from_slice(&[0x1d, 1, 2, 3, 4]); // field 3, fixed32
        let copy = rewrite(&message, |field, out| {
            out.extend_from_slice(field.raw);
            Ok(())
        });
        assert_eq!(copy.unwrap(), message);
        let numbers: Vec<u32> = fields(&message).map(|field| field.unwrap().number).collect();
        assert_eq!(numbers, [1, 2, 1000, 3]);
    }

    #[test]
    fn a_truncated_message_is_an_error() {
        let mut message = Vec::new();
        put_varint(&mut message, 1, 300);
        put_bytes(&mut message, 2, b"hello");
        for end in [1, 2, 4, 5, message.len() - 1] {
            assert!(fields(&message[..end]).any(|field| field.is_err()), "cut at {end}");
        }
        assert!(fields(&[0xff; 11]).any(|field| field.is_err()), "endless varint");
        assert!(fields(&[0x0b]).any(|field| field.is_err()), "groups are not used by Envoy");
        assert!(fields(&[0x00, 0x00]).any(|field| field.is_err()), "field number 0");
    }
}
