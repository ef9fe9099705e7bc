//! When a certificate ends, read from its DER.

use time::{Date, Month, OffsetDateTime, Time};

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The end of a certificate's validity; none when the bytes are no certificate.
pub(crate) fn not_after(certificate: &[u8]) -> Option<OffsetDateTime> {
    let (_, certificate, _) = element(certificate).filter(|(tag, ..)| *tag == SEQUENCE)?;
    let (_, mut rest, _) = element(certificate).filter(|(tag, ..)| *tag == SEQUENCE)?;
    // Version (which may be left out), serial number, algorithm, issuer; then the validity.
    if let (VERSION, _, after) = element(rest)? {
        rest = after;
    }
    for _ in 0..3 {
        (_, _, rest) = element(rest)?;
    }
    let (_, validity, _) = element(rest).filter(|(tag, ..)| *tag == SEQUENCE)?;
    let (_, _, rest) = element(validity)?;
    let (tag, text, _) = element(rest)?;
    moment(tag, std::str::from_utf8(text).ok()?)
}

/// Tag, content, and what follows.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match *first {
        short @ 0..0x80 => (usize::from(short), rest),
        long => {
            let (length, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
            let length = length.iter().try_fold(0_usize, |sum, byte| {
                sum.checked_mul(256)?.checked_add(usize::from(*byte))
            })?;
            (length, rest)
        }
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`.
fn moment(tag: u8, text: &str) -> Option<OffsetDateTime> {
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            let year: i32 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    let two = |at: usize| rest.get(at..at + 2)?.parse::<u8>().ok();
    let date = Date::from_calendar_date(year, Month::try_from(two(0)?).ok()?, two(2)?).ok()?;
    let time = Time::from_hms(two(4)?, two(6)?, two(8)?).ok()?;
    (rest.get(10..) == Some("Z")).then(|| date.with_time(time).assume_utc())
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_read_in_both_forms() {
        for end in [
            datetime!(2031-02-03 04:05:06 UTC),
            datetime!(2999-12-31 23:59:59 UTC),
        ] {
            let mut params = rcgen::CertificateParams::default();
            params.not_after = end;
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = params.self_signed(&key).unwrap();
            assert_eq!(not_after(certificate.der()), Some(end));
            // Broken off anywhere, it has no end, and nothing else happens.
            for length in 0..100 {
                assert_eq!(not_after(&certificate.der()[..length]), None, "{length}");
            }
        }
        assert_eq!(not_after(&[SEQUENCE, 0xff, 1, 2]), None);
        assert_eq!(
            moment(UTC_TIME, "990101000000Z").map(|at| at.year()),
            Some(1999)
        );
        assert_eq!(moment(UTC_TIME, "991301000000Z"), None);
        assert_eq!(moment(UTC_TIME, "9é"), None);
    }
}
