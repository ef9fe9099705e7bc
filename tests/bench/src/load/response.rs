use std::borrow::Cow;

use anyhow::{Context as _, Result};

/// An HTTP/1.1 answer that has come as a whole.
#[derive(Debug)]
pub(super) struct Answer<'a> {
    pub(super) status: &'a [u8],
    pub(super) body: Cow<'a, [u8]>,
}

impl<'a> Answer<'a> {
    /// Reads an answer; none while there is more to come.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Option<Self>> {
        let Some((head, rest)) = split(bytes, b"\r\n\r\n") else {
            return Ok(None);
        };
        let mut lines = head.split(|&byte| byte == b'\n');
        let first = lines.next().unwrap_or_default();
        let status = first.get(9..12).context("an answer has no status")?;
        let (mut length, mut chunked) = (0, false);
        for line in lines {
            let Some((name, value)) = split(line, b":") else {
                continue;
            };
            let value = value.trim_ascii();
            if name.eq_ignore_ascii_case(b"content-length") {
                length = std::str::from_utf8(value)?.parse()?;
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                chunked = value.eq_ignore_ascii_case(b"chunked");
            }
        }
        let body = if chunked {
            chunks(rest)?.map(Cow::Owned)
        } else {
            rest.get(..length).map(Cow::Borrowed)
        };
        Ok(body.map(|body| Self { status, body }))
    }
}

/// The body whose chunks these are; none while there are more to come.
fn chunks(mut rest: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    loop {
        let Some((size, after)) = split(rest, b"\r\n") else {
            return Ok(None);
        };
        let size = usize::from_str_radix(std::str::from_utf8(size)?, 16)?;
        let Some((chunk, after)) = after.split_at_checked(size) else {
            return Ok(None);
        };
        let Some(after) = after.strip_prefix(b"\r\n") else {
            return Ok(None);
        };
        if size == 0 {
            return Ok(Some(body));
        }
        body.extend_from_slice(chunk);
        rest = after;
    }
}

fn split<'a>(bytes: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = bytes
        .windows(separator.len())
        .position(|window| window == separator)?;
    let (before, after) = bytes.split_at_checked(at)?;
    Some((before, after.get(separator.len()..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_when_all_of_it_is_there() {
        let plain = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc".as_slice();
        let chunked =
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n";
        for whole in [plain, chunked] {
            let answer = Answer::parse(whole).unwrap().unwrap();
            assert_eq!(answer.status, b"200");
            assert_eq!(answer.body.as_ref(), b"abc");
            for length in 0..whole.len() {
                assert!(
                    Answer::parse(&whole[..length]).unwrap().is_none(),
                    "{length}"
                );
            }
        }
        assert!(Answer::parse(b"?\r\n\r\n").is_err());
        assert!(
            Answer::parse(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nz\r\n").is_err()
        );
    }
}
