//! The few fields of DNS messages that a server in between must know ("Domain Names", RFC 1035, 4.1; EDNS, RFC 6891).

/// The length of the header. A shorter message is no query.
const SMALLEST: usize = 12;
/// How long an answer over UDP may be, unless the query says otherwise.
const UDP: usize = 512;
/// The type of the record in which a query says how long the answer may be.
const OPT: u16 = 41;

const RESPONSE: u8 = 0x80;
const OPCODE_AND_RECURSION: u8 = 0x79;
const TRUNCATED: u8 = 0x02;
const SERVFAIL: u8 = 2;

/// Whether this may be a query. An answer to an answer could come back as a query, and so on without end.
pub(crate) fn is_query(message: &[u8]) -> bool {
    message.len() >= SMALLEST && message[2] & RESPONSE == 0
}

/// Reads a message from its begin on.
struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn after_header(message: &'a [u8]) -> Self {
        Self { message, at: SMALLEST }
    }

    fn u16(&mut self) -> Option<u16> {
        let bytes = self.message.get(self.at..self.at + 2)?;
        self.at += 2;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn skip(&mut self, length: usize) -> Option<()> {
        self.at += length;
        (self.at <= self.message.len()).then_some(())
    }

    /// Skips a name. It ends with an empty label, or with a pointer to another name.
    fn name(&mut self) -> Option<()> {
        loop {
            let length = *self.message.get(self.at)?;
            match length {
                0 => return self.skip(1),
                1..=63 => self.skip(usize::from(length) + 1)?,
                192.. => return self.skip(2),
                _ => return None,
            }
        }
    }

    /// Skips a question.
    fn question(&mut self) -> Option<()> {
        self.name()?;
        self.skip(4)
    }

    /// Skips a record. Returns its type and class.
    fn record(&mut self) -> Option<(u16, u16)> {
        self.name()?;
        let (kind, class) = (self.u16()?, self.u16()?);
        self.skip(4)?;
        let length = self.u16()?;
        self.skip(length.into())?;
        Some((kind, class))
    }
}

/// The count of questions (0), answers (1), authorities (2) or additional records (3).
fn count(message: &[u8], which: usize) -> u16 {
    let at = 4 + 2 * which;
    u16::from_be_bytes([message[at], message[at + 1]])
}

/// The end of the questions, if the message has them.
fn questions_end(message: &[u8]) -> Option<usize> {
    let mut reader = Reader::after_header(message);
    for _ in 0..count(message, 0) {
        reader.question()?;
    }
    Some(reader.at)
}

/// The size in the OPT record of a query, if there is one.
fn edns(query: &[u8]) -> Option<u16> {
    let mut reader = Reader { message: query, at: questions_end(query)? };
    let records: u32 = (1..4).map(|which| u32::from(count(query, which))).sum();
    for _ in 0..records {
        if let (OPT, size) = reader.record()? {
            return Some(size);
        }
    }
    None
}

/// How long the answer to this query over UDP may be.
pub(crate) fn limit(query: &[u8]) -> usize {
    edns(query).map_or(UDP, |size| UDP.max(size.into()))
}

/// Header and questions of the query as an answer without records, with these two bytes of flags.
fn empty(query: &[u8], flags: [u8; 2]) -> Option<Vec<u8>> {
    let mut answer = query[..questions_end(query)?].to_vec();
    answer[2..4].copy_from_slice(&flags);
    answer[6..12].fill(0);
    if edns(query).is_some() {
        // An answer to a query with OPT has one too: an empty name, the type, the size, no flags, no data.
        answer[11] = 1;
        answer.extend([0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0]);
    }
    Some(answer)
}

/// The answer SERVFAIL. None if this is no query.
pub(crate) fn refusal(query: &[u8]) -> Option<Vec<u8>> {
    if !is_query(query) {
        return None;
    }
    empty(query, [RESPONSE | query[2] & OPCODE_AND_RECURSION, SERVFAIL])
}

/// An answer that is too long becomes one without records that says so. The client then asks again by TCP.
pub(crate) fn fits(answer: Vec<u8>, query: &[u8], limit: usize) -> Vec<u8> {
    if answer.len() <= limit || answer.len() < SMALLEST {
        return answer;
    }
    empty(query, [answer[2] | TRUNCATED, answer[3]]).unwrap_or(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A query for the A records of `web.service.consul`.
    fn query(edns: Option<u16>) -> Vec<u8> {
        let mut query =
            b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x07service\x06consul\x00\x00\x01\x00\x01"
                .to_vec();
        if let Some(size) = edns {
            query[11] = 1;
            query.extend([0, 0, 41]);
            query.extend(size.to_be_bytes());
            query.extend([0, 0, 0, 0, 0, 0]);
        }
        query
    }

    #[test]
    fn limit_is_the_size_in_the_query() {
        assert_eq!(limit(&query(None)), 512);
        assert_eq!(limit(&query(Some(1232))), 1232);
        assert_eq!(limit(&query(Some(100))), 512);
    }

    #[test]
    fn too_long_answer_is_truncated() {
        let query = query(Some(1232));
        let mut answer = query.clone();
        answer[2] = 0x85;
        answer[7] = 60;
        answer.resize(1300, 0);
        assert_eq!(fits(answer.clone(), &query, 1300), answer);
        let short = fits(answer, &query, 1232);
        assert_eq!((short[2], &short[4..12]), (0x87, &[0, 1, 0, 0, 0, 0, 0, 1][..]));
        assert_eq!(short.len(), query.len());
        assert_eq!(limit(&short), 4096);
    }

    #[test]
    fn refusal_is_servfail_with_the_question() {
        let answer = refusal(&query(None)).unwrap();
        assert_eq!((&answer[..4], &answer[12..]), (&b"\x12\x34\x81\x02"[..], &query(None)[12..]));
        let mut response = query(None);
        response[2] |= 0x80;
        assert_eq!(refusal(&response), None);
    }

    #[test]
    fn no_message_makes_it_panic() {
        let whole = query(Some(1232));
        for end in 0..whole.len() {
            let _ = refusal(&whole[..end]);
            if end >= SMALLEST {
                let _ = limit(&whole[..end]);
                let mut wrong = whole[..end].to_vec();
                wrong[4..12].fill(0xff);
                let _ = (limit(&wrong), refusal(&wrong), fits(vec![0; 600], &wrong, 512));
            }
        }
        let mut pointer = whole.clone();
        pointer[12] = 0xc0;
        let _ = limit(&pointer);
        pointer[12] = 0x80;
        assert_eq!(limit(&pointer), 512);
    }
}
